from __future__ import annotations

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.engine.step_programs import StepPrograms, kernel_variants
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from jitmk.schedule.cost import split_ladder
from tests.support.features import FEATURES, feature_spec


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_one_kernel_runs_every_number_of_splits(name: str, fused: bool) -> None:
    spec = feature_spec(name)
    variants = kernel_variants(spec, fused)
    names = [variant.name for variant in variants]
    assert len(names) == len(set(names)), "names tell variants apart in errors and traces"
    for splits in (1, 2, 3, 16):
        assert set(lower(spec, splits, fused=fused).variants) <= set(variants)


@pytest.mark.parametrize("fused", [True, False])
def test_programs_are_made_once_and_fit_the_arena(fused: bool) -> None:
    spec, arch = feature_spec("two-ropes"), GpuArch.parse("sm_90a", sm_count=12)
    programs = StepPrograms(spec, plan_weights(spec), arch, torch.device("cpu"), fused=fused)
    for splits in split_ladder(spec, arch.sm_count)[:3]:
        prepared = programs.for_splits(splits)
        assert prepared is programs.for_splits(splits) and prepared.program.splits == splits
        assert prepared.program.arena_words <= programs.largest_arena_words()
        assert prepared.program == lower(spec, splits, fused=fused)
        assert prepared.instruction(0, 0) is not None and prepared.queues.shape[0] == arch.sm_count
