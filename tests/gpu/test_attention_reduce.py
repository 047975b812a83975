"""ATTENTION_REDUCE by itself: partial results of random splits, some of them empty."""

from __future__ import annotations

import pytest

from jitmk.model.spec import ModelSpec
from tests.gpu.conftest import OpRunners
from tests.support.op_kernels import ATTENTION_SPECS, MANY_HEADS_SPEC
from tests.support.single_reduce import check_attention_reduce

pytestmark = pytest.mark.gpu

SPLITS = (2, 3, 5, 16, 17, 64)


@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=lambda s: f"head-{s.head_dim}-{s.num_heads}-heads")
def test_splits_are_weighed_by_their_maxima(spec: ModelSpec, op_runners: OpRunners) -> None:
    runner = op_runners[f"attention-{spec.head_dim}"]
    for splits in SPLITS:
        for empty in ([], [0], list(range(1, splits))):
            check_attention_reduce(runner, spec, splits, empty)


def test_more_splits_than_the_gpu_has_sms_for(op_runners: OpRunners) -> None:
    for splits in SPLITS:
        check_attention_reduce(op_runners["attention-many-heads"], MANY_HEADS_SPEC, splits, [0])
