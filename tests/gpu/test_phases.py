"""Every kind of phase that models lower to, fused and unfused, by itself."""

from __future__ import annotations

import pytest
import torch

from jitmk.program.lowering import lower
from jitmk.program.weights import WeightPlan
from tests.gpu.conftest import OpRunners
from tests.support.features import FEATURES, feature_spec
from tests.support.op_kernels import ZERO
from tests.support.op_runner import Data
from tests.support.phases import zero_program
from tests.support.single_phases import ModelPhases, phase_groups

pytestmark = pytest.mark.gpu

CAPACITY = 256


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_phases(name: str, fused: bool, op_runners: OpRunners) -> None:
    spec, runner = feature_spec(name), op_runners[f"features-{name}"]
    model = ModelPhases(spec, CAPACITY, runner.device)
    for splits in (1, 3, 5):
        for names in phase_groups(lower(spec, splits, fused=fused)):
            for position in (0, 15, 16, 37, 200):
                model.check(runner, names, position, splits=splits, fused=fused)


def test_zeros(op_runners: OpRunners) -> None:
    program = zero_program(ZERO)
    outcome = op_runners["embed-sample"].run(program, WeightPlan({}, {}, 0, 0), {}, Data())
    assert torch.equal(outcome.outputs["output"], torch.zeros(program.buffers[0].values))
