"""MATVEC by itself, on the host: every prologue and epilogue."""

from __future__ import annotations

import pytest

from jitmk.program.program import Variant
from tests.support.op_kernels import (
    MATVEC_CHUNKS,
    MATVEC_KINDS,
    MATVEC_OWN_KINDS,
    MATVEC_OWN_PARTS,
    MATVEC_PARTS,
    MATVEC_SHAPES,
    MATVEC_WIDE_NORMS,
)
from tests.support.single_matvec import check_matvec, run_matvec
from tests.unit.device.conftest import HostRunners


@pytest.mark.parametrize("variant", MATVEC_KINDS, ids=lambda variant: variant.name)
def test_every_epilogue(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners["matvec-kinds"], variant))


@pytest.mark.parametrize("variant", MATVEC_PARTS, ids=lambda variant: variant.name)
def test_every_function_factor_and_norm(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners["matvec-parts"], variant))


@pytest.mark.parametrize("variant", MATVEC_SHAPES[:6], ids=lambda variant: variant.name)
def test_odd_shapes(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners["matvec-shapes"], variant))


@pytest.mark.parametrize("variant", MATVEC_CHUNKS[:3], ids=lambda variant: variant.name)
def test_chunks_of_other_sizes(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners["matvec-chunks"], variant))


@pytest.mark.parametrize("variant", MATVEC_OWN_KINDS, ids=lambda variant: variant.name)
def test_every_epilogue_of_own_units(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners["matvec-own-kinds"], variant))


@pytest.mark.parametrize("variant", MATVEC_OWN_PARTS, ids=lambda variant: variant.name)
def test_every_part_of_own_units(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners["matvec-own-parts"], variant))


@pytest.mark.parametrize("variant", MATVEC_WIDE_NORMS[1:], ids=lambda variant: variant.name)
def test_norms_of_wide_vectors(variant: Variant, host_runners: HostRunners) -> None:
    check_matvec(variant, *run_matvec(host_runners["matvec-wide-norms"], variant))
