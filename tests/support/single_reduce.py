"""ATTENTION_REDUCE by itself: partial results of random splits, some of them empty."""

from __future__ import annotations

import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.configs import PARTIAL_EXTRA, AttentionReduceConfig
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from jitmk.reference.ops.attention_reduce import attention_reduce
from tests.support.closeness import assert_close
from tests.support.op_runner import Data, OpRunner
from tests.support.phases import isolate


def check_attention_reduce(runner: OpRunner, spec: ModelSpec, splits: int, empty: list[int]) -> None:
    """Merges partial results of which those of some splits say that they had no position."""
    program = isolate(lower(spec, splits), "layers.0.attention_reduce")
    (phase,) = program.phases
    config = phase.variant.config
    assert isinstance(config, AttentionReduceConfig)
    partial = _partial(spec, splits, empty, runner.device)
    outcome = runner.run(program, plan_weights(spec), {phase.buffers["input"].name: partial}, Data())
    expected = attention_reduce(config, range(phase.units), splits, partial[None].double())
    what = f"{splits} splits, {len(empty)} of them empty"
    assert_close("merged", outcome.outputs["output"], expected["output"][0], what)


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
