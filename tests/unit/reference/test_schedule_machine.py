from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.engine.philox import gumbel
from jitmk.errors import ConfigError, ScheduleError
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec
from jitmk.program.barriers import with_barriers
from jitmk.program.fusion import Fusion
from jitmk.program.lowering import lower
from jitmk.program.program import Buffer, Phase
from jitmk.reference.interleaving import (
    AsFarAsPossible,
    DeadlockError,
    Interleaving,
    RandomOrder,
    Reverse,
    Starve,
)
from jitmk.reference.machine import ReferenceMachine
from jitmk.reference.schedule_machine import ScheduleMachine
from jitmk.reference.weights import ReferenceWeights
from jitmk.reference.words import RaceError
from jitmk.schedule.build import make_schedule
from jitmk.schedule.policies import POLICIES
from jitmk.schedule.schedule import Schedule
from jitmk.schedule.verify import verify
from tests.support.features import FEATURES, any_fusions, any_specs, feature_spec
from tests.support.programs import phase_index, place_of, with_queue
from tests.support.tiny import tiny_spec

SPECS = {
    "plain": tiny_spec(),
    "mqa": tiny_spec(num_heads=16, num_kv_heads=1, num_layers=1),
    "biases": tiny_spec(qkv_bias=True, o_bias=True, mlp_bias=True, num_heads=6, head_dim=80, num_layers=1),
    **{name: feature_spec(name) for name in FEATURES if name != "plain"},
}
STEPS = 20
SAMPLING: dict[str, Any] = {"temperature": 0.9, "seed": 11}


@cache
def weights_of(name: str) -> ReferenceWeights:
    return ReferenceWeights(SPECS[name], RandomCheckpoint(SPECS[name]))


@cache
def expected(
    name: str, splits: int, fused: bool = True, steps: int = STEPS
) -> tuple[list[int], torch.Tensor, dict[str, torch.Tensor]]:
    """Tokens and logits of every step, and the buffers after the last, by the reference machine."""
    weights = weights_of(name)
    machine = ReferenceMachine(SPECS[name], weights, splits=splits, fused=fused, noise=gumbel, sums=torch.float64)
    tokens, logits = [5], []
    for position in range(steps):
        result = machine.step(tokens[-1], position, want_logits=True, **SAMPLING)
        tokens.append(result.token)
        assert result.logits is not None
        logits.append(result.logits)
    return tokens[1:], torch.stack(logits), dict(machine.outputs())


def scheduled(name: str, splits: int = 1, sms: int = 6, policy: str = "round_robin", *, fused: bool = True) -> Schedule:
    schedule = make_schedule(lower(SPECS[name], splits, fused=fused), sms, policy)
    verify(schedule)
    return schedule


def runner(schedule: Schedule, name: str = "plain") -> ScheduleMachine:
    return ScheduleMachine(schedule, SPECS[name], weights_of(name), noise=gumbel)


def check(
    schedule: Schedule,
    name: str,
    splits: int,
    interleaving: Interleaving,
    *,
    fused: bool = True,
    steps: int = STEPS,
) -> None:
    """Two launches, the second on the words and the cache that the first left: bit for bit the reference's results."""
    tokens, logits, buffers = expected(name, splits, fused, steps)
    machine = runner(schedule, name)
    first = machine.run(5, 0, 3, interleaving, **SAMPLING)
    first_logits = machine.logits
    second = machine.run(first[-1], 3, steps - 3, interleaving, **SAMPLING)
    assert first + second == tokens
    assert torch.equal(torch.stack(first_logits + machine.logits), logits)
    for copy in range(2):
        for buffer, values in machine.outputs(copy).items():
            assert buffer.endswith(".barrier.output") or torch.equal(values, buffers[buffer]), buffer


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("splits", [1, 3])
def test_every_policy(policy: str, splits: int) -> None:
    check(scheduled("plain", splits, policy=policy), "plain", splits, RandomOrder(0))


@pytest.mark.parametrize(
    "interleaving",
    [RandomOrder(1), AsFarAsPossible(1), Reverse(), Starve(0), Starve(2, role="loader"), Starve(3, role="executor")],
    ids=lambda interleaving: type(interleaving).__name__,
)
@pytest.mark.parametrize("name", ["mqa", "biases"])
def test_every_interleaving(name: str, interleaving: Interleaving) -> None:
    check(scheduled(name, 2), name, 2, interleaving)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_every_part_of_a_model(name: str, fused: bool) -> None:
    """SMs that come as late as they can, one of them later than all others, on shares of the work that differ."""
    check(scheduled(name, 2, 5, "wave", fused=fused), name, 2, Starve(1, seed=3), fused=fused, steps=9)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(any_specs(), any_fusions(), st.sampled_from((1, 3)), st.integers(0, 2**32))
def test_any_combination_of_parts(spec: ModelSpec, fusion: Fusion, splits: int, seed: int) -> None:
    weights = ReferenceWeights(spec, RandomCheckpoint(spec))
    schedule = make_schedule(lower(spec, splits, fused=fusion), 4, "zigzag")
    verify(schedule)
    machine = ScheduleMachine(schedule, spec, weights)
    tokens = machine.run(5, 0, 8, RandomOrder(seed))
    reference = ReferenceMachine(spec, weights, splits=splits, fused=fusion, sums=torch.float64)
    for position, token in enumerate([5, *tokens[:-1]]):
        result = reference.step(token, position, want_logits=True)
        assert result.token == tokens[position]
        assert result.logits is not None and torch.equal(machine.logits[position], result.logits)


@pytest.mark.parametrize("policy", POLICIES)
def test_barriers_change_nothing(policy: str) -> None:
    schedule = make_schedule(with_barriers(lower(SPECS["plain"], 2), 4), 4, policy)
    verify(schedule)
    check(schedule, "plain", 2, Starve(2, seed=1), steps=9)


def test_barriers_keep_phases_apart() -> None:
    """With them, whoever waits, waits at a barrier, for an SM that is not there yet."""
    schedule = make_schedule(with_barriers(lower(SPECS["plain"]), 3), 3)
    with pytest.raises(DeadlockError) as caught:
        runner(with_queue(schedule, 1, ())).run(5, 0, 1, RandomOrder(0))
    at_barrier = [wait for wait in caught.value.waits if wait.role == "executor" and wait.sm != 1]
    assert {(wait.phase, wait.what) for wait in at_barrier} == {("embed.barrier", "SM 1 at the barrier")}


@pytest.mark.parametrize("sms", [1, 2, 40])
def test_any_number_of_sms(sms: int) -> None:
    check(scheduled("mqa", 3, sms), "mqa", 3, AsFarAsPossible(2))


def test_greedy_with_fp32_sums_is_close() -> None:
    """fp32 sums depend on their order: bf16 values may round to the neighbour, which is the size of bf16 noise."""
    spec, weights = SPECS["plain"], weights_of("plain")
    machine = ScheduleMachine(scheduled("plain"), spec, weights, sums=torch.float32)
    reference = ReferenceMachine(spec, weights)
    machine.run(5, 0, 1, RandomOrder(0))
    logits = reference.step(5, 0, want_logits=True).logits
    assert logits is not None
    assert (machine.logits[0] - logits).norm() <= 2**-7 * logits.norm()


def test_the_launch_overwrites_what_lies_behind_it() -> None:
    machine = runner(scheduled("plain"))
    tokens, _, _ = expected("plain", 1)
    machine.run(9, 0, 12, RandomOrder(3), **SAMPLING)
    assert machine.run(5, 0, STEPS, RandomOrder(4), **SAMPLING) == tokens


# Schedules that are wrong.


def test_swapped_instructions_deadlock() -> None:
    good = scheduled("plain")
    down = phase_index(good.program, "layers.1.down")
    sm, place = place_of(good, down)
    queue = list(good.queues[sm])
    queue[0], queue[place] = queue[place], queue[0]
    with pytest.raises(DeadlockError) as caught:
        runner(with_queue(good, sm, queue)).run(5, 0, 2, RandomOrder(0))
    culprit = next(wait for wait in caught.value.waits if wait.sm == sm and wait.role == "executor")
    assert (culprit.step, culprit.instruction, culprit.phase) == (0, 0, "layers.1.down")
    assert "of buffer 'layers.1.gate_up.output'" in culprit.what


def test_a_missing_unit_deadlocks() -> None:
    good = scheduled("plain")
    sm, place = place_of(good, phase_index(good.program, "layers.0.o_proj"))
    queue = [assignment for i, assignment in enumerate(good.queues[sm]) if i != place]
    with pytest.raises(DeadlockError, match=r"waits for values 0 to 63 of buffer 'layers\.0\.o_proj\.output'"):
        runner(with_queue(good, sm, queue)).run(5, 0, 2, RandomOrder(0))


def test_a_duplicated_unit_is_a_race() -> None:
    good = scheduled("plain")
    sm, place = place_of(good, phase_index(good.program, "layers.0.gate_up"))
    other = (sm + 1) % 6
    queue = sorted([*good.queues[other], replace(good.queues[sm][place], unit_count=1)], key=lambda a: a.phase)
    with pytest.raises(RaceError, match=r"\(layers\.0\.gate_up\) writes word .* wrote it in epoch 1 already"):
        runner(with_queue(good, other, queue)).run(5, 0, 2, RandomOrder(0))


def with_alias(schedule: Schedule, moved: str, onto: str) -> Schedule:
    """The schedule with one buffer at the place of another."""
    program = schedule.program
    target = next(buffer for buffer in program.buffers if buffer.name == onto)

    def place(buffer: Buffer) -> Buffer:
        return replace(buffer, offset=target.offset) if buffer.name == moved else buffer

    def phase(old: Phase) -> Phase:
        return replace(old, buffers={operand: place(buffer) for operand, buffer in old.buffers.items()})

    return replace(
        schedule,
        program=replace(program, phases=tuple(map(phase, program.phases)), buffers=tuple(map(place, program.buffers))),
    )


@pytest.mark.parametrize(
    ("moved", "onto"),
    [("layers.1.qkv.output", "layers.0.qkv.output"), ("layers.0.o_proj.output", "embed.output")],
)
@pytest.mark.parametrize("seed", range(3))
def test_aliased_buffers_are_a_race(moved: str, onto: str, seed: int) -> None:
    spoiled = with_alias(scheduled("plain"), moved, onto)
    with pytest.raises(ScheduleError, match="begins at word"):
        verify(spoiled)
    with pytest.raises(RaceError):
        runner(spoiled).run(5, 0, 3, RandomOrder(seed))


class WaitsOnlyForTheLastPosition(ScheduleMachine):
    """Its loaders wait for an append only if their unit also has the new token."""

    def must_acquire(self, old: range, newest: bool, launch_position: int) -> bool:
        return newest and super().must_acquire(old, newest, launch_position)


class NeverWaits(ScheduleMachine):
    """Its loaders fetch old keys and values without asking whether they are there."""

    def must_acquire(self, old: range, newest: bool, launch_position: int) -> bool:
        return False


@pytest.mark.parametrize(("kind", "splits"), [(NeverWaits, 1), (WaitsOnlyForTheLastPosition, 3)])
def test_loaders_must_not_outrun_the_cache(kind: type[ScheduleMachine], splits: int) -> None:
    """A loader may be steps ahead, so that a tile may be incomplete long after it ceased to be the newest."""
    machine = kind(scheduled("plain", splits), SPECS["plain"], weights_of("plain"))
    with pytest.raises(RaceError, match=r"loader, step \d+, .* has not been released yet"):
        machine.run(5, 0, 40, AsFarAsPossible(0))


def test_a_small_ring_holds_loaders_back() -> None:
    schedule = scheduled("plain", 3)
    tokens, _, _ = expected("plain", 3)
    machine = ScheduleMachine(schedule, SPECS["plain"], weights_of("plain"), noise=gumbel, ring=1)
    assert machine.run(5, 0, STEPS, AsFarAsPossible(0), **SAMPLING) == tokens


def test_sampling_needs_noise() -> None:
    spec: ModelSpec = SPECS["plain"]
    machine = ScheduleMachine(scheduled("plain"), spec, weights_of("plain"))
    with pytest.raises(ConfigError, match="this schedule machine has no noise"):
        machine.run(5, 0, 1, RandomOrder(0), temperature=1.0)
