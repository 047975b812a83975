"""Which program a context gets. Queues lie on the CPU here."""

from __future__ import annotations

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.engine.step_programs import StepPrograms, kernel_variants
from jitmk.engine.tuning import Tuning
from jitmk.errors import ConfigError
from jitmk.program.weights import plan_weights
from tests.support.tiny import tiny_spec

SPEC = tiny_spec()
FEW_SMS = GpuArch.parse("sm_90a", sm_count=16)


def programs(tuning: Tuning) -> StepPrograms:
    return StepPrograms(SPEC, plan_weights(SPEC), FEW_SMS, torch.device("cpu"), tuning)


def test_the_tuning_says_how_many_splits() -> None:
    prepared = programs(Tuning(3, 2, "round_robin", ((0, 1), (100, 4))))
    assert [prepared.for_context(context).program.splits for context in (0, 99, 100, 255)] == [1, 1, 4, 4]
    assert prepared.for_context(200) is prepared.for_splits(4), "prepared once"
    assert prepared.for_context(200).variants == kernel_variants(SPEC)


def test_another_tuning_takes_over_at_once() -> None:
    prepared = programs(Tuning(3, 2, "round_robin", ((0, 1),)))
    before = prepared.for_context(50)
    prepared.tuning = Tuning(3, 2, "wave", ((0, 1), (40, 2)))
    assert prepared.for_context(50).program.splits == 2
    wave = prepared.for_context(0)
    assert wave.program == before.program and not torch.equal(wave.queues, before.queues)
    prepared.tuning = Tuning(2, 2, "round_robin", ((0, 1),))
    assert prepared.for_context(50) is before


def test_the_arena_holds_every_number_of_splits() -> None:
    prepared = programs(Tuning(3, 2, "round_robin", ((0, 1),)))
    assert all(prepared.for_splits(n).program.arena_words <= prepared.largest_arena_words() for n in (1, 2, 3, 8))


def test_no_program_is_prepared_by_a_policy_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no schedule policy 'dice'"):
        programs(Tuning(3, 2, "dice", ((0, 1),))).for_context(0)
