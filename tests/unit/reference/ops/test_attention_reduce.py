from __future__ import annotations

import math

import torch

from jitmk.program.configs import AttentionReduceConfig
from jitmk.reference.ops.attention_reduce import attention_reduce
from jitmk.reference.ops.rounding import to_bf16

CONFIG = AttentionReduceConfig(heads=3, head_dim=16, output_copies=1)


def partial_results(splits: int) -> torch.Tensor:
    """Random results [1, splits, heads, head_dim + 2]."""
    partial = torch.randn(1, splits, 3, 18)
    partial[..., 16] *= 10
    partial[..., 17] = partial[..., 17].abs() + 1
    return partial


def test_merge_is_the_weighted_mean() -> None:
    partial = partial_results(5)
    weights = torch.exp2(partial[..., 16].double())[..., None]
    expected = (weights * partial[..., :16]).sum(1) / (weights * partial[..., 17:]).sum(1)
    out = attention_reduce(CONFIG, range(3), 5, partial.flatten(1))["output"]
    assert torch.allclose(out.double(), expected.flatten(1), rtol=2**-8, atol=1e-6)
    assert torch.equal(out, to_bf16(out))


def test_empty_splits_and_far_maxima_do_no_harm() -> None:
    partial = partial_results(3)
    partial[:, 0, :, :16], partial[:, 0, :, 16], partial[:, 0, :, 17] = 0, -math.inf, 0
    partial[:, 1, :, 16] = -500
    partial[:, 2, :, 16] = 500
    out = attention_reduce(CONFIG, range(3), 3, partial.flatten(1))["output"]
    assert torch.equal(out, to_bf16((partial[:, 2, :, :16] / partial[:, 2, :, 17:]).flatten(1)))


def test_units_are_heads() -> None:
    partial = partial_results(4).flatten(1)
    whole = attention_reduce(CONFIG, range(3), 4, partial)["output"].view(1, 3, 16)
    assert torch.equal(attention_reduce(CONFIG, range(0, 4, 2), 4, partial)["output"].view(1, 2, 16), whole[:, ::2])
    assert torch.equal(attention_reduce(CONFIG, range(1, 2), 4, partial)["output"].view(1, 1, 16), whole[:, 1:2])
