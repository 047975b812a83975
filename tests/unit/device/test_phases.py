"""Every kind of phase that models lower to, fused and unfused, by itself on the host."""

from __future__ import annotations

import pytest
import torch

from jitmk.program.lowering import lower
from jitmk.program.weights import WeightPlan
from tests.support.features import FEATURES, feature_spec
from tests.support.op_kernels import ZERO
from tests.support.op_runner import Data
from tests.support.phases import zero_program
from tests.support.single_phases import ModelPhases, phase_groups
from tests.unit.device.conftest import HostRunners

CAPACITY = 64
POSITION = 37


@pytest.mark.parametrize("name", FEATURES)
def test_phases(name: str, host_runners: HostRunners) -> None:
    spec, runner = feature_spec(name), host_runners[f"features-{name}"]
    model = ModelPhases(spec, CAPACITY, torch.device("cpu"))
    for fused in (True, False):
        for names in phase_groups(lower(spec, fused=fused)):
            model.check(runner, names, POSITION, fused=fused)


def test_zeros(host_runners: HostRunners) -> None:
    program = zero_program(ZERO)
    outcome = host_runners["embed-sample"].run(program, WeightPlan({}, {}, 0, 0), {}, Data())
    assert torch.equal(outcome.outputs["output"], torch.zeros(program.buffers[0].values))
