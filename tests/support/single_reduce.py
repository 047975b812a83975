"""ATTENTION_REDUCE by itself: partial results of random splits, some of them empty."""

from __future__ import annotations

import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.configs import LSE_WORDS, AttentionReduceConfig
from jitmk.program.fusion import Fusion
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from jitmk.reference.ops.attention_reduce import attention_reduce
from tests.support.closeness import assert_close
from tests.support.op_runner import Data, OpRunner
from tests.support.phases import isolate


def check_attention_reduce(runner: OpRunner, spec: ModelSpec, splits: int, empty: list[int]) -> None:
    """Merges partial results of which those of some splits say that they had no position."""
    program = isolate(lower(spec, splits, fused=Fusion(merge=False)), "layers.0.attention_reduce")
    (phase,) = program.phases
    config = phase.variant.config
    assert isinstance(config, AttentionReduceConfig)
    partial, lse = _random_splits(spec, splits, empty, runner.device)
    inputs = {phase.buffers["input"].name: partial, phase.buffers["lse"].name: lse}
    outcome = runner.run(program, plan_weights(spec), inputs, Data())
    expected = attention_reduce(config, range(phase.units), splits, partial[None].double(), lse[None].double())
    what = f"{splits} splits, {len(empty)} of them empty"
    assert_close("merged", outcome.outputs["output"], expected["output"][0], what)


def _random_splits(spec: ModelSpec, splits: int, empty: list[int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """What ATTENTION writes: bf16 values [splits * heads * head_dim], fp32 [splits * heads * LSE_WORDS] in log2."""
    random = torch.Generator(device).manual_seed(spec.head_dim + splits)
    shape = (splits, spec.num_heads, spec.head_dim)
    partial = torch.randn(shape, generator=random, device=device).bfloat16().float()
    # Normalisers far apart: some splits vanish beside others.
    lse = 8 * torch.randn(shape[:2], generator=random, device=device)
    partial[empty], lse[empty] = 0, -torch.inf
    return partial.flatten(), lse.flatten().repeat_interleave(LSE_WORDS)
