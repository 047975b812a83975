"""MATVEC by itself: every prologue and epilogue, in odd shapes."""

from __future__ import annotations

import pytest
import torch

from jitmk.program.program import Variant
from jitmk.schedule.policies import POLICIES
from tests.gpu.conftest import OpRunners
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

pytestmark = pytest.mark.gpu

KERNEL_OF = {
    variant: name
    for name, variants in (
        ("matvec-kinds", MATVEC_KINDS),
        ("matvec-parts", MATVEC_PARTS),
        ("matvec-shapes", MATVEC_SHAPES),
        ("matvec-wide-norms", MATVEC_WIDE_NORMS),
        ("matvec-chunks", MATVEC_CHUNKS),
        ("matvec-own-kinds", MATVEC_OWN_KINDS),
        ("matvec-own-parts", MATVEC_OWN_PARTS),
    )
    for variant in variants
}


@pytest.mark.parametrize("variant", KERNEL_OF, ids=lambda variant: variant.name)
def test_rows(variant: Variant, op_runners: OpRunners) -> None:
    check_matvec(variant, *run_matvec(op_runners[KERNEL_OF[variant]], variant))


@pytest.mark.parametrize("policy", POLICIES)
def test_who_computes_a_row_does_not_matter(policy: str, op_runners: OpRunners) -> None:
    """Every bit is the same, whichever SM computed it and in whatever company."""
    for variant in (MATVEC_SHAPES[6], MATVEC_SHAPES[7], MATVEC_WIDE_NORMS[1], MATVEC_CHUNKS[3], MATVEC_OWN_PARTS[-1]):
        runner = op_runners[KERNEL_OF[variant]]
        usual, _ = run_matvec(runner, variant)
        other, _ = run_matvec(runner, variant, policy)
        assert usual.outputs.keys() == other.outputs.keys()
        for operand, values in usual.outputs.items():
            assert torch.equal(values, other.outputs[operand]), (variant.name, operand)
