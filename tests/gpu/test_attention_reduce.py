"""ATTENTION_REDUCE by itself: partial results of random splits, some of them empty."""

from __future__ import annotations

import pytest
import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.lowering import lower
from jitmk.program.program import PARTIAL_EXTRA, AttentionReduceConfig
from jitmk.program.weights import plan_weights
from jitmk.reference.ops.attention_reduce import attention_reduce
from tests.gpu.conftest import OpRunners
from tests.support.closeness import assert_close
from tests.support.op_kernels import ATTENTION_SPECS
from tests.support.op_runner import Data
from tests.support.phases import isolate

pytestmark = pytest.mark.gpu

SPLITS = (2, 3, 5, 16, 17, 64)


def _partial(spec: ModelSpec, splits: int, empty: list[int], device: torch.device) -> torch.Tensor:
    """fp32 [splits * heads * (head_dim + 2)]: sums, maxima in units of log2, normalisers, as ATTENTION writes them."""
    random = torch.Generator(device).manual_seed(spec.head_dim + splits)
    shape = (splits, spec.num_heads, spec.head_dim + PARTIAL_EXTRA)
    rows = torch.randn(shape, generator=random, device=device)
    rows[..., spec.head_dim] *= 8  # maxima far apart: some splits vanish beside others
    rows[..., spec.head_dim + 1] = 1 + 30 * torch.rand(shape[:2], generator=random, device=device)
    rows[empty] = 0
    rows[empty, :, spec.head_dim] = -torch.inf
    return rows.flatten()


@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=lambda s: f"head-{s.head_dim}-{s.num_heads}-heads")
def test_splits_are_weighed_by_their_maxima(spec: ModelSpec, op_runners: OpRunners) -> None:
    runner = op_runners[f"attention-{spec.head_dim}"]
    for splits in SPLITS:
        for empty in ([], [0], list(range(1, splits))):
            program = isolate(lower(spec, splits), "layers.0.attention_reduce")
            (phase,) = program.phases
            config = phase.variant.config
            assert isinstance(config, AttentionReduceConfig)
            partial = _partial(spec, splits, empty, runner.device)
            outcome = runner.run(program, plan_weights(spec), {phase.buffers["input"].name: partial}, Data())
            expected = attention_reduce(config, range(phase.units), splits, partial[None].double())
            what = f"{splits} splits, {len(empty)} of them empty"
            assert_close("merged", outcome.outputs["output"], expected["output"][0], what)
