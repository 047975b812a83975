"""SAMPLE by itself and behind an LM head: ties, values that are no numbers, the noise of a temperature, and filters."""

from __future__ import annotations

import pytest
import torch

from jitmk.engine.backend import DeviceSampling
from jitmk.engine.philox import gumbel
from jitmk.engine.step_programs import DeviceProgram
from jitmk.errors import DeviceError
from jitmk.model.spec import ModelSpec
from jitmk.program.isa import Instruction, Opcode, end_of_queue
from jitmk.program.lowering import lower
from jitmk.reference.ops.sample_filter import Filters
from tests.gpu.conftest import OpRunners
from tests.support.closeness import TOLERANCES, assert_close
from tests.support.filter_cases import FILTERS, TIGHT_FILTERS
from tests.support.op_kernels import LARGE_SAMPLE_SPEC, SAMPLE_SPEC
from tests.support.op_runner import Data, OpRunner, Step
from tests.support.phases import isolate
from tests.support.single_sample import check_filtered, random_head, run_head
from tests.support.words import poison_words, write_candidates

pytestmark = pytest.mark.gpu

INF, NAN = float("inf"), float("nan")
VOCAB = SAMPLE_SPEC.vocab_size


@pytest.fixture
def runner(op_runners: OpRunners) -> OpRunner:
    return op_runners["embed-sample"]


def _choose(runner: OpRunner, keys: list[float], ids: list[int], sm: int = 0) -> int:
    """The token that SAMPLE takes of these candidates; one instruction, on one SM."""
    program = isolate(lower(SAMPLE_SPEC), "sample")
    (phase,) = program.phases
    candidates = phase.buffers["input"]
    operands = {"input": candidates.offset, "candidates": len(keys)}
    variant = runner.variants.index(phase.variant)
    queues = torch.tensor([[end_of_queue()] * 2] * runner.sms, dtype=torch.int32)
    queues[sm, 0] = torch.tensor(Instruction(Opcode.SAMPLE, variant, 0, 0, 1, 1, operands).encode(), dtype=torch.int32)
    epoch = runner.next_epoch
    poison_words(runner.words, epoch)
    write_candidates(runner.words, candidates, torch.tensor(keys), torch.tensor(ids), epoch)
    runner.launch(DeviceProgram(program, queues.to(runner.device), runner.variants), Data(), Step(), epoch)
    return runner.token(epoch)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 127, 128, 129, 1024])
def test_the_largest_key_wins_wherever_it_stands(count: int, runner: OpRunner) -> None:
    keys = torch.linspace(-3, 3, count).tolist()
    ids = [7 * i + 5 for i in range(count)]
    for best in {0, count // 2, count - 1}:
        shifted = keys[count - 1 - best :] + keys[: count - 1 - best]
        assert _choose(runner, shifted, ids, sm=best % runner.sms) == ids[best]


def test_of_equal_keys_the_lowest_token(runner: OpRunner) -> None:
    assert _choose(runner, [1.0, 2.0, 2.0, 2.0], [1, 30, 20, 40]) == 20
    assert _choose(runner, [2.0] * 200, list(range(900, 700, -1))) == 701
    assert _choose(runner, [0.0, -0.0], [9, 8]) == 8


def test_what_is_no_number_never_wins(runner: OpRunner) -> None:
    assert _choose(runner, [NAN, -5.0, NAN, -6.0], [1, 2, 3, 4]) == 2
    assert _choose(runner, [-INF, -1e30, NAN], [1, 2, 3]) == 2


@pytest.mark.parametrize("count", [1, 132])
def test_nothing_but_nan_is_an_error_that_says_so(count: int, runner: OpRunner) -> None:
    with pytest.raises(DeviceError, match="not numbers"):
        _choose(runner, [NAN] * count, list(range(count)))
    assert _choose(runner, [1.0], [3]) == 3, "the next launch is none the worse"


def test_greedy_takes_the_largest_logit(runner: OpRunner) -> None:
    rows, x = random_head()
    outcome = run_head(runner, rows, x, Step())
    assert outcome.logits is not None and outcome.token == int(outcome.logits.argmax())


def test_equal_rows_tie_to_the_lowest_token(runner: OpRunner) -> None:
    """The same row at several places gives the same bits, whichever SM computes it."""
    rows, x = random_head()
    best = rows[int((rows.float() @ x).argmax())] * 2
    for places in ([1002, 3, 500], [1001, 1002], [0, 1], [8, 7]):
        tied = rows.clone()
        tied[places] = best
        outcome = run_head(runner, tied, x, Step())
        assert outcome.logits is not None
        assert torch.equal(outcome.logits[places], outcome.logits[places[:1]].expand(len(places)))
        assert outcome.token == min(places)


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 1), (0xFFFFFFFFFFFFFFFF, 4096), (0x1_0000_0000, 131070)])
def test_noise_is_that_of_the_host(seed: int, position: int, runner: OpRunner) -> None:
    """With logits of zero the keys are the noise: for the position that the new token will have."""
    rows, x = torch.zeros(VOCAB, SAMPLE_SPEC.hidden_size).bfloat16(), torch.ones(SAMPLE_SPEC.hidden_size)
    outcome = run_head(runner, rows, x, Step(position=position, sampling=DeviceSampling(0.7, seed)))
    noise = gumbel(seed, position + 1, VOCAB)
    assert outcome.candidates is not None
    keys, ids = outcome.candidates
    assert_close("noise", keys, noise[ids], "keys of the candidates")
    lead_queues = [a for queue in outcome.schedule.queues for a in queue if a.phase == 0]
    for assignment, token in zip(lead_queues, ids.tolist(), strict=True):
        own = torch.cat([torch.arange(u * 8, min(VOCAB, u * 8 + 8)) for u in assignment.units])
        assert token in own.tolist()
        assert_close("noise", noise[token], noise[own].max(), f"best of units {assignment.units}")
    top = noise.topk(2).values
    assert top[0] - top[1] > 100 * TOLERANCES["noise"].absolute, "a seed without a clear winner tests nothing"
    assert outcome.token == int(noise.argmax())


def test_temperature_divides_the_logits(runner: OpRunner) -> None:
    """Many draws: each is the best by logit / temperature + noise, but where two keys are as good as equal."""
    rows, x = random_head()
    decided = 0
    for draw in range(40):
        temperature, seed, position = (0.25, 0.8, 1.0, 3.0)[draw % 4], 1000 + draw, 17 * draw
        outcome = run_head(runner, rows, x, Step(position=position, sampling=DeviceSampling(temperature, seed)))
        assert outcome.logits is not None and outcome.token is not None
        keys = outcome.logits / temperature + gumbel(seed, position + 1, VOCAB)
        top = keys.topk(2).values
        if top[0] - top[1] > 1e-3:
            decided += 1
            assert outcome.token == int(keys.argmax()), (temperature, seed, position)
    assert decided >= 35


def test_a_frozen_temperature_is_greedy_and_a_hot_one_is_not(runner: OpRunner) -> None:
    rows, x = random_head()
    greedy = run_head(runner, rows, x, Step()).token
    cold = {run_head(runner, rows, x, Step(sampling=DeviceSampling(1e-4, seed))).token for seed in range(5)}
    hot = {run_head(runner, rows, x, Step(sampling=DeviceSampling(5.0, seed))).token for seed in range(8)}
    assert cold == {greedy} and len(hot) > 4


@pytest.mark.parametrize("policy", ["round_robin", "wave", "pool"])
@pytest.mark.parametrize("vocab_size", [VOCAB, LARGE_SAMPLE_SPEC.vocab_size])
def test_filters_leave_what_the_host_leaves(vocab_size: int, policy: str, runner: OpRunner) -> None:
    """Fresh logits for every draw; nothing is cleared between launches, so each finds what the one before left."""
    decided, draws = 0, 0
    for i, filters in enumerate(FILTERS * 2):
        rows, x = random_head(vocab_size, seed=1000 + i)
        rows = rows * (1, 6)[i % 2]
        sampling = DeviceSampling((0.8, 3.0, 0.3)[i % 3], 7 + i, filters=filters)
        step = Step(position=31 * i, sampling=sampling)
        decided += check_filtered(run_head(runner, rows, x, step, policy), step)
        draws += 1
    assert decided >= 0.9 * draws


@pytest.mark.parametrize("spec", [SAMPLE_SPEC, LARGE_SAMPLE_SPEC], ids=lambda s: f"{s.vocab_size}-tokens")
def test_not_one_token_too_many_is_left_or_too_few(spec: ModelSpec, runner: OpRunner) -> None:
    decided = 0
    for i, filters in enumerate(TIGHT_FILTERS * 5):
        step = Step(position=i, sampling=DeviceSampling(50.0, i, filters=filters))
        decided += check_filtered(run_head(runner, *random_head(spec.vocab_size, seed=i), step), step)
    assert decided >= 4 * len(TIGHT_FILTERS)


@pytest.mark.parametrize("filters", FILTERS)
def test_filters_of_logits_that_are_equal(filters: Filters, runner: OpRunner) -> None:
    """All equal, then in large groups: equal logits share their fate, so the threshold lies between groups."""
    rows, x = random_head()
    for groups in (1, 3, 40):
        tied = rows[torch.arange(VOCAB) % groups]
        for seed in range(3):
            step = Step(position=seed, sampling=DeviceSampling(1.0, seed, filters=filters))
            check_filtered(run_head(runner, tied, x, step), step)


def test_launches_with_and_without_filters_take_turns(runner: OpRunner) -> None:
    rows, x = random_head()
    plain = Step(sampling=DeviceSampling(1.0, 5))
    alone = run_head(runner, rows, x, plain).token
    for filters in FILTERS:
        step = Step(sampling=DeviceSampling(1.0, 5, filters=filters))
        check_filtered(run_head(runner, rows, x, step), step)
        assert run_head(runner, rows, x, plain).token == alone
    greedy = run_head(runner, rows, x, Step(sampling=DeviceSampling(filters=Filters(top_k=1))))
    assert greedy.logits is not None and greedy.token == int(greedy.logits.argmax())


def test_filters_of_nothing_but_nan_are_an_error_that_says_so(runner: OpRunner) -> None:
    rows, x = random_head()
    step = Step(sampling=DeviceSampling(1.0, 5, filters=Filters(5, 0.9, 0.1)))
    with pytest.raises(DeviceError, match="not numbers"):
        run_head(runner, rows * torch.nan, x, step)
    some = rows.clone()
    some[::3] = torch.nan
    outcome = run_head(runner, some, x, step)
    assert outcome.token is not None and outcome.token % 3 != 0
    check_filtered(run_head(runner, rows, x, step), step)
