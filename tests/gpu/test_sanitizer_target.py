"""The script that compute-sanitizer watches runs, and its checks hold, with both kinds of kernel."""

from __future__ import annotations

import pytest

from jitmk.cuda.device import Device
from tests.gpu import sanitizer_target

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("race_check", [False, True])
@pytest.mark.parametrize("name", sanitizer_target.TARGETS)
def test_every_way_to_run_agrees(name: str, race_check: bool, gpu: Device) -> None:
    sanitizer_target.run(name, race_check=race_check)
