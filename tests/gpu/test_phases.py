"""Every kind of phase that models lower to, fused and unfused, by itself."""

from __future__ import annotations

import pytest

from jitmk.program.lowering import lower
from tests.gpu.conftest import OpRunners
from tests.support.features import FEATURES, feature_spec
from tests.support.single_phases import ModelPhases, phase_groups

pytestmark = pytest.mark.gpu

CAPACITY = 256


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_phases(name: str, fused: bool, op_runners: OpRunners) -> None:
    spec, runner = feature_spec(name), op_runners[f"features-{name}"]
    model = ModelPhases(spec, CAPACITY, runner.device)
    for splits in (1, 3):
        for names in phase_groups(lower(spec, splits, fused=fused)):
            for position in (0, 15, 16, 37, 200):
                model.check(runner, names, position, splits=splits, fused=fused)
