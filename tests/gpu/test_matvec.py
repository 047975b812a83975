"""MATVEC by itself: every prologue and epilogue, in odd shapes."""

from __future__ import annotations

import pytest
import torch

from jitmk.program.program import Variant
from jitmk.schedule.policies import POLICIES
from tests.gpu.conftest import OpRunners
from tests.support.op_kernels import MATVEC_CHUNKS, MATVEC_OWN_PARTS, MATVEC_SHAPES, MATVEC_WIDE_NORMS, MATVECS
from tests.support.single_matvec import check_matvec, run_matvec

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("variant", MATVECS, ids=lambda variant: variant.name)
def test_rows(variant: Variant, op_runners: OpRunners) -> None:
    check_matvec(variant, *run_matvec(op_runners[MATVECS[variant]], variant))


@pytest.mark.parametrize("policy", POLICIES)
def test_who_computes_a_row_does_not_matter(policy: str, op_runners: OpRunners) -> None:
    """Every bit is the same, whichever SM computed it and in whatever company."""
    for variant in (MATVEC_SHAPES[6], MATVEC_SHAPES[7], MATVEC_WIDE_NORMS[1], MATVEC_CHUNKS[3], MATVEC_OWN_PARTS[-1]):
        runner = op_runners[MATVECS[variant]]
        usual, _ = run_matvec(runner, variant)
        other, _ = run_matvec(runner, variant, policy)
        assert usual.outputs.keys() == other.outputs.keys()
        for operand, values in usual.outputs.items():
            assert torch.equal(values, other.outputs[operand]), (variant.name, operand)
