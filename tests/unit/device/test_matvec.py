"""MATVEC by itself, on the host: every prologue and epilogue."""

from __future__ import annotations

import pytest

from jitmk.program.program import Variant
from tests.support.op_kernels import MATVEC_CHUNKS, MATVEC_SHAPES, MATVEC_WIDE_NORMS, MATVECS
from tests.support.single_matvec import check_matvec, run_matvec
from tests.unit.device.conftest import HostRunners

TOO_LARGE = {*MATVEC_SHAPES[6:], *MATVEC_CHUNKS[3:], *MATVEC_WIDE_NORMS[:1]}
"""For the host; they run on the GPU."""


@pytest.mark.parametrize("variant", [v for v in MATVECS if v not in TOO_LARGE], ids=lambda variant: variant.name)
def test_rows(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners[MATVECS[variant]], variant))
