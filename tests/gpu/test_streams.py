"""Tokens that the device samples: greedy, drawn, and drawn with filters; many steps a launch, stopping, going on."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from jitmk.codegen.abi import MAX_STOP_TOKENS
from jitmk.cuda.device import Device
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.megakernel import STEPS_PER_LAUNCH
from jitmk.engine.philox import gumbel
from jitmk.engine.sampling import leave
from jitmk.errors import DeviceError
from jitmk.reference.machine import ReferenceMachine
from jitmk.reference.ops.sample_filter import Filters
from jitmk.reference.weights import ReferenceWeights
from jitmk.settings import Settings
from tests.gpu.live_models import LLAMAS, Live, LiveModels, open_backend, source
from tests.gpu.test_models import random_ids

pytestmark = pytest.mark.gpu

GREEDY = DeviceSampling()
FILTERED = DeviceSampling(1.3, 8, filters=Filters(top_k=30, top_p=0.9))
START = 20
STEPS = 100


def _stream(live: Live, steps: int = STEPS, sampling: DeviceSampling = GREEDY) -> tuple[int, list[int]]:
    """(first input, tokens) of a stream behind a prompt of START tokens."""
    ids = random_ids(START + 1, live.spec.vocab_size)
    live.backend.prefill(ids[:START])
    return ids[START], list(live.backend.decode_stream(ids[START], START, steps, sampling))


@pytest.mark.parametrize("name", LLAMAS)
def test_greedy_tokens_are_the_largest_logits(name: str, models: LiveModels) -> None:
    live = models[name]
    steps = 40  # within the contexts that have one split on every model here
    first, tokens = _stream(live, steps)
    logits = live.backend.forced_logits([first, *tokens[:-1]], START)
    assert logits.argmax(-1).tolist() == tokens
    assert len(set(tokens)) > 3, "a stream that repeats one token tests little"


@pytest.mark.parametrize("sampling", [GREEDY, DeviceSampling(0.8, 7), FILTERED], ids=["greedy", "drawn", "filtered"])
def test_many_steps_a_launch_are_many_launches(sampling: DeviceSampling, models: LiveModels) -> None:
    """Inside a launch the device hands its own tokens and its own cache from step to step; between launches we do."""
    live = models["gqa-64"]
    before = live.backend.tuning
    try:
        # Splits round differently, and how many there are depends on where a launch ends.
        live.backend.use(replace(before, split_steps=((0, 1),)))
        first, tokens = _stream(live, STEPS, sampling)
        single, token = [], first
        live.backend.prefill(random_ids(START, live.spec.vocab_size))
        for position in range(START, START + STEPS):
            (token,) = live.backend.decode_stream(token, position, 1, sampling)
            single.append(token)
        assert single == tokens
    finally:
        live.backend.use(before)


def test_the_same_seed_gives_the_same_tokens_and_another_does_not(models: LiveModels) -> None:
    live = models["gqa-64"]
    streams = [_stream(live, 40, DeviceSampling(1.0, seed))[1] for seed in (3, 3, 4)]
    assert streams[0] == streams[1] != streams[2]
    assert _stream(live, 40, DeviceSampling(0.5, 3))[1] != streams[0]


@pytest.mark.parametrize("name", ["gqa-64", "mqa-256"])
def test_temperature_draws_what_the_reference_machine_draws(name: str, models: LiveModels) -> None:
    """At every step whose two best keys are further apart than roundings, along the GPU's own tokens."""
    live, sampling = models[name], DeviceSampling(0.9, 12345678901)
    first, tokens = _stream(live, 30, sampling)
    machine = ReferenceMachine(live.spec, ReferenceWeights(live.spec, source(name)), noise=gumbel)
    for layer in range(live.spec.num_layers):
        machine.cache.write(layer, 0, *live.backend.cached(layer, START))
    decided, token = 0, first
    for i, chosen in enumerate(tokens):
        position = START + i
        step = machine.step(token, position, temperature=sampling.temperature, seed=sampling.seed, want_logits=True)
        assert step.logits is not None
        keys = step.logits / sampling.temperature + gumbel(sampling.seed, position + 1, live.spec.vocab_size)
        # Logits are of about unit size; 0.02 of them is what phases of a model may differ by.
        noise = 4 * 0.02 / sampling.temperature
        top = keys.topk(2).values
        if top[0] - top[1] > noise:
            decided += 1
            assert chosen == step.token, position
        assert keys[chosen] >= top[0] - noise, position
        token = chosen
    assert decided >= len(tokens) // 2


@pytest.mark.parametrize("name", LLAMAS)
@pytest.mark.parametrize("filters", [Filters(top_k=5), Filters(top_p=0.5), Filters(min_p=0.2), Filters(40, 0.8, 0.01)])
def test_filtered_tokens_are_left_by_the_host_too(filters: Filters, name: str, models: LiveModels) -> None:
    """The host's choice from the device's logits at every step, but where two keys are as good as equal."""
    live, sampling = models[name], DeviceSampling(2.0, 9, filters=filters)
    steps = 40  # within the contexts that have one split on every model here
    first, tokens = _stream(live, steps, sampling)
    rows = live.backend.forced_logits([first, *tokens[:-1]], START)
    decided = 0
    for i, (logits, chosen) in enumerate(zip(rows, tokens, strict=True)):
        left = leave(logits, sampling.temperature, filters)
        assert bool(left[chosen]), (i, chosen)
        keys = logits / sampling.temperature + gumbel(sampling.seed, START + i + 1, live.spec.vocab_size)
        keys = torch.where(left, keys, -torch.inf)
        top = keys.topk(2).values
        if top[0] - top[1] > 1e-3:
            decided += 1
            assert chosen == int(keys.argmax()), i
    assert decided >= 0.9 * steps
    assert len(set(tokens)) > 3, "a stream that repeats one token tests little"


def test_a_stream_that_is_left_early_can_be_taken_up_again(models: LiveModels) -> None:
    """Steps that ran ahead of the reader are forgotten: their positions are written again."""
    live = models["gqa-64"]
    first, whole = _stream(live)
    live.backend.prefill(random_ids(START, live.spec.vocab_size))
    token, position = first, START
    tokens: list[int] = []
    for count in (5, 1, 16, 17, 2):
        stream = live.backend.decode_stream(token, position, STEPS - len(tokens), GREEDY)
        tokens += list(islice(stream, count))
        stream.close()
        token, position = tokens[-1], START + len(tokens)
    tokens += live.backend.decode_stream(token, position, STEPS - len(tokens), GREEDY)
    assert tokens == whole


@pytest.mark.parametrize("before", [0, 15, 18])
@pytest.mark.parametrize("sampling", [GREEDY, DeviceSampling(1.0, 5), FILTERED], ids=["greedy", "drawn", "filtered"])
def test_a_stop_token_ends_the_stream(sampling: DeviceSampling, before: int, models: LiveModels) -> None:
    """The device knows the first 16 of them and stops by itself; the host knows all."""
    live = models["gqa-64"]
    first, whole = _stream(live, 60, sampling)
    never = [token for token in range(live.spec.vocab_size) if token not in whole][:20]
    fresh = [i for i, token in enumerate(whole) if token not in whole[:i]]
    for at in {fresh[0], fresh[-1], fresh[len(fresh) // 2]}:
        live.backend.prefill(random_ids(START, live.spec.vocab_size))
        stopping = replace(sampling, stop_tokens=(*never[:before], whole[at], *never[before:]))
        launcher = live.backend._launcher
        epoch = launcher._next_epoch
        tokens = list(live.backend.decode_stream(first, START, 60, stopping))
        assert tokens == whole[: at + 1]
        if (at + 1) % STEPS_PER_LAUNCH and at + 1 < len(whole):  # a step of the same launch lies behind it
            if before < MAX_STOP_TOKENS:
                with pytest.raises(DeviceError, match="without the token"):
                    launcher.token(epoch + at + 1)
            else:
                assert launcher.token(epoch + at + 1) == whole[at + 1]
        rest = live.backend.decode_stream(tokens[-1], START + len(tokens), 60 - len(tokens), sampling)
        assert tokens + list(rest) == whole


@pytest.mark.parametrize("max_seq_len", [96, 100])
def test_up_to_the_last_position_of_the_cache(
    max_seq_len: int, models: LiveModels, gpu: Device, gpu_settings: Settings
) -> None:
    """A cache that is just long enough gives what a longer one gives, whether or not it ends with a tile."""
    live = models["gqa-64"]
    _, expected = _stream(live, max_seq_len - START)
    backend = open_backend("gqa-64", gpu, gpu_settings, max_seq_len=max_seq_len)
    try:
        _, tokens = _stream(Live(live.spec, True, backend), max_seq_len - START)
        ids = random_ids(max_seq_len, live.spec.vocab_size)
        logits = backend.forced_logits(ids, 0)
    finally:
        backend.close()
    assert tokens == expected
    assert torch.equal(logits, live.backend.forced_logits(ids, 0))


def test_epochs_start_over_at_their_limit(models: LiveModels) -> None:
    """Two thousand million steps from now: the stream goes on as if nothing had happened."""
    live = models["gqa-64"]
    first, expected = _stream(live, 60)
    launcher = live.backend._launcher
    launcher._next_epoch = 2**31 - 20
    live.backend.prefill(random_ids(START, live.spec.vocab_size))
    assert list(live.backend.decode_stream(first, START, 60, GREEDY)) == expected
    assert launcher._next_epoch < 100, "the limit lay within the stream"


@pytest.mark.parametrize("at", range(STEPS_PER_LAUNCH - 3, STEPS_PER_LAUNCH + 3))
def test_a_stop_at_the_seam_of_two_launches_leaves_the_next_generation_alone(at: int, models: LiveModels) -> None:
    """A launch is queued behind the one that stops: it must do nothing, and the next stream must come out as ever."""
    live = models["gqa-64"]
    _, tokens = _stream(live, 40)
    stop = next((i for i in range(at, 40) if tokens[i] not in tokens[:i]), None)
    assert stop is not None, "a stream that repeats itself has no token to stop at"
    assert _stream(live, 40, DeviceSampling(stop_tokens=(tokens[stop],)))[1] == tokens[: stop + 1]
    assert _stream(live, 40)[1] == tokens
