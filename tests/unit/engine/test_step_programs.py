"""Which program a context gets. Queues lie on the CPU here."""

from __future__ import annotations

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.engine.step_programs import StepPrograms, kernel_variants
from jitmk.engine.tuning import Tuning
from jitmk.errors import ConfigError
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from jitmk.schedule.cost import split_ladder
from tests.support.features import FEATURES, feature_spec
from tests.support.tiny import tiny_spec

SPEC = tiny_spec()
FEW_SMS = GpuArch.parse("sm_90a", sm_count=16)
ONE_SPLIT = Tuning(3, 2, 0, "round_robin", ((0, 1),))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_one_kernel_runs_every_number_of_splits(name: str, fused: bool) -> None:
    spec = feature_spec(name)
    variants = kernel_variants(spec, fused)
    names = [variant.name for variant in variants]
    assert len(names) == len(set(names)), "names tell variants apart in errors and traces"
    for splits in (1, 2, 3, 4, 5, 16):
        assert set(lower(spec, splits, fused=fused).variants) <= set(variants)


@pytest.mark.parametrize("fused", [True, False])
def test_programs_are_made_once_and_fit_the_arena(fused: bool) -> None:
    spec, arch = feature_spec("two-ropes"), GpuArch.parse("sm_90a", sm_count=12)
    prepared = StepPrograms(spec, plan_weights(spec), arch, torch.device("cpu"), ONE_SPLIT, fused=fused)
    for splits in split_ladder(spec, arch.sm_count)[:3]:
        program = prepared.for_splits(splits)
        assert program is prepared.for_splits(splits) and program.program.splits == splits
        assert program.program.arena_words <= prepared.largest_arena_words()
        assert program.program == lower(spec, splits, fused=fused)
        assert program.variants == prepared.variants == kernel_variants(spec, fused)
        assert program.instruction(0, 0) is not None and program.queues.shape[0] == arch.sm_count


def programs(tuning: Tuning) -> StepPrograms:
    return StepPrograms(SPEC, plan_weights(SPEC), FEW_SMS, torch.device("cpu"), tuning)


def test_the_tuning_says_how_many_splits() -> None:
    prepared = programs(Tuning(3, 2, 0, "round_robin", ((0, 1), (100, 4))))
    assert [prepared.for_context(context).program.splits for context in (0, 99, 100, 255)] == [1, 1, 4, 4]
    assert prepared.for_context(200) is prepared.for_splits(4), "prepared once"
    assert prepared.for_context(200).variants == kernel_variants(SPEC)


def test_another_tuning_takes_over_at_once() -> None:
    prepared = programs(ONE_SPLIT)
    before = prepared.for_context(50)
    prepared.tuning = Tuning(3, 2, 0, "wave", ((0, 1), (40, 2)))
    assert prepared.for_context(50).program.splits == 2
    wave = prepared.for_context(0)
    assert wave.program == before.program and not torch.equal(wave.queues, before.queues)
    prepared.tuning = Tuning(2, 2, 0, "round_robin", ((0, 1),))
    assert prepared.for_context(50) is before


@pytest.mark.parametrize("sms", [2, 6, 10, 16])
def test_the_arena_holds_every_number_of_splits(sms: int) -> None:
    """Of 5 splits there is one copy of what each of 4 has two of."""
    spec, arch = tiny_spec(num_heads=4), GpuArch.parse("sm_90a", sm_count=sms)
    prepared = StepPrograms(spec, plan_weights(spec), arch, torch.device("cpu"), ONE_SPLIT)
    most = split_ladder(spec, sms)[-1]
    words = [prepared.for_splits(splits).program.arena_words for splits in range(1, most + 1)]
    assert max(words) == prepared.largest_arena_words()
    assert sms != 10 or words[-1] < words[-2]


def test_no_program_is_prepared_by_a_policy_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="no schedule policy 'dice'"):
        programs(Tuning(3, 2, 0, "dice", ((0, 1),))).for_context(0)
