from __future__ import annotations

import pytest
import torch

from jitmk.engine.compare import Observation, PhaseCheck, StepChecker
from jitmk.engine.reference_backend import ReferenceBackend
from jitmk.engine.resident import load_resident
from jitmk.engine.schedule_backend import ScheduleBackend
from jitmk.engine.torch_backend import TorchBackend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.program.weights import plan_weights
from tests.support.features import FEATURES, feature_spec
from tests.support.tiny import tiny_spec

CPU = torch.device("cpu")
SPEC = tiny_spec(num_heads=6, num_kv_heads=2, qkv_bias=True, mlp_bias=True)
PLAN = plan_weights(SPEC)
SOURCE = RandomCheckpoint(SPEC)
IDS = [(11 * i + 5) % SPEC.vocab_size for i in range(30)]


@pytest.fixture(scope="module")
def checker() -> StepChecker:
    return StepChecker(SPEC, load_resident(PLAN, SOURCE, CPU))


def observe(backend: ReferenceBackend | TorchBackend | ScheduleBackend, at: int, rounds: bool = True) -> Observation:
    backend.prefill(IDS[:at])
    return Observation(IDS[at], at, backend.phase_outputs(IDS[at], at), backend.cached, rounds)


def reference(at: int = 20) -> Observation:
    return observe(ReferenceBackend(SPEC, PLAN, SOURCE, 64), at)


def unsound(checks: list[PhaseCheck]) -> list[PhaseCheck]:
    return [check for check in checks if not check.sound]


def test_the_reference_is_exactly_what_is_expected_of_it(checker: StepChecker) -> None:
    checks = list(checker.check(reference()))
    assert {check.worst for check in checks} == {0.0}
    # embed, lm_head and, per layer, qkv, cache, attention, o_proj, gate_up, down; residuals are outputs of their own.
    assert len(checks) == 2 + 1 + SPEC.num_layers * (6 + 2)


@pytest.mark.parametrize("at", [1, 16, 29])
def test_what_only_rounds_differently_is_sound(checker: StepChecker, at: int) -> None:
    split = ReferenceBackend(SPEC, PLAN, SOURCE, 64, splits=4)
    plain = TorchBackend(SPEC, PLAN, SOURCE, CPU, 64)
    scheduled = ScheduleBackend(SPEC, PLAN, SOURCE, "zigzag")
    for backend in (split, plain, scheduled):
        checks = list(checker.check(observe(backend, at, rounds=backend is not plain)))
        assert unsound(checks) == []
        if backend is plain:
            # The bound is of the size of what it bounds.
            assert max(check.worst for check in checks) > 0.3


@pytest.mark.parametrize(
    ("buffer", "row", "phase", "layer"),
    [
        ("embed.output", 5, "embed", None),
        ("layers.0.qkv.output", 100, "layers.0.qkv", 0),
        ("layers.1.attention.output", 200, "layers.1.attention", 1),
        ("layers.0.o_proj.residual", 63, "layers.0.o_proj", 0),
        ("layers.1.gate_up.output", 0, "layers.1.gate_up", 1),
        ("layers.1.down.output", 17, "layers.1.down", 1),
        ("logits", 99, "lm_head", None),
    ],
)
def test_one_wrong_value_is_found_where_it_is(
    checker: StepChecker, buffer: str, row: int, phase: str, layer: int | None
) -> None:
    seen = reference()
    values = seen.outputs[buffer]
    # A tenth of what is usual: far less than one would see in the logits.
    values[row] += 0.1 * values.square().mean().sqrt() + 0.02 * values[row].abs()
    first = unsound(list(checker.check(seen)))[0]
    assert (first.phase, first.layer, first.buffer, first.rows) == (phase, layer, buffer, (row,))
    assert first.worst > 1 and first.difference > 0


def test_a_value_that_is_not_a_number_is_never_sound(checker: StepChecker) -> None:
    seen = reference()
    seen.outputs["logits"][3] = torch.nan
    (found,) = unsound(list(checker.check(seen)))
    assert found.rows == (3,) and found.worst == float("inf")


def test_a_key_that_was_stored_wrong_is_found(checker: StepChecker) -> None:
    seen = reference()

    def corrupted(layer: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (tensor.clone() for tensor in seen.cache(layer, positions))
        if layer == 1 and positions == 21:
            keys[1, 20, 7] += 0.25
        return keys, values

    checks = list(checker.check(Observation(seen.token, seen.position, seen.outputs, corrupted, seen.rounds)))
    first = unsound(checks)[0]
    assert first.phase == "layers.1.attention (cache)" and first.rows == (2 * SPEC.head_dim + 7,)


@pytest.mark.parametrize("name", FEATURES)
def test_every_part_of_a_model(name: str) -> None:
    spec = feature_spec(name)
    plan, source = plan_weights(spec), RandomCheckpoint(spec)
    checker = StepChecker(spec, load_resident(plan, source, CPU))
    own = ReferenceBackend(spec, plan, source, 64)
    assert {check.worst for check in checker.check(observe(own, 25))} == {0.0}
    plain = TorchBackend(spec, plan, source, CPU, 64)
    assert unsound(list(checker.check(observe(plain, 25, rounds=False)))) == []
    split = ReferenceBackend(spec, plan, source, 64, splits=3)
    seen = observe(split, 25)
    assert unsound(list(checker.check(seen))) == []
    # Every buffer matters: a value that is off is found in the phase that wrote it.
    for check in list(checker.check(seen)):
        if check.buffer in seen.outputs:
            row, values = seen.outputs[check.buffer].shape[0] // 2, seen.outputs[check.buffer]
            kept = values[row].clone()
            values[row] += 0.25 * values.square().mean().sqrt() + 0.05 * values[row].abs()
            found = unsound(list(checker.check(seen)))
            assert check.buffer in {one.buffer for one in found}, check
            values[row] = kept
