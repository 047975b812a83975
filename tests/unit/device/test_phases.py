"""Every kind of phase that models lower to, fused and unfused, by itself on the host."""

from __future__ import annotations

import pytest
import torch

from jitmk.program.lowering import lower
from tests.support.features import FEATURES, feature_spec
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
