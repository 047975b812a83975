"""The kernels of prefill, run on the host, do what the same steps in torch do."""

from __future__ import annotations

import pytest
import torch

from tests.support.device_on_host import HostKernels
from tests.support.prefill_pair import CHECKS, SPECS, Pair


@pytest.fixture(scope="module", params=SPECS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    spec = SPECS[request.param]
    return Pair.of(spec, torch.device("cpu"), HostKernels(spec, tmp_path_factory.mktemp("kernels")))


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_host(check: str, pair: Pair) -> None:
    CHECKS[check](pair)
