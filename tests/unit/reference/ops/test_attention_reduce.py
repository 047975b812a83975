from __future__ import annotations

import math

import torch

from jitmk.program.configs import LSE_WORDS, AttentionReduceConfig
from jitmk.reference.ops.attention_reduce import attention_reduce
from jitmk.reference.ops.rounding import to_bf16

CONFIG = AttentionReduceConfig(heads=3, head_dim=16, output_copies=1)


def partial_results(splits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random outputs [1, splits, heads, head_dim] and logarithms [1, splits, heads]."""
    return to_bf16(torch.randn(1, splits, 3, 16)), 10 * torch.randn(1, splits, 3)


def reduced(partial: torch.Tensor, lse: torch.Tensor, units: range = range(3)) -> torch.Tensor:
    words = lse.flatten(1).repeat_interleave(LSE_WORDS, dim=1)
    return attention_reduce(CONFIG, units, lse.shape[1], partial.flatten(1), words)["output"]


def test_merge_is_the_weighted_mean() -> None:
    partial, lse = partial_results(5)
    weights = torch.exp2(lse.double())[..., None]
    expected = (weights * partial).sum(1) / weights.sum(1)
    out = reduced(partial, lse)
    assert torch.allclose(out.double(), expected.flatten(1), rtol=2**-8, atol=1e-6)
    assert torch.equal(out, to_bf16(out))


def test_parts_of_a_softmax_make_the_whole() -> None:
    scores, values = torch.randn(1, 3, 30), to_bf16(torch.randn(30, 16))
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    partial = torch.stack([scores[..., part].softmax(-1) @ values[part] for part in parts], dim=1)
    lse = torch.stack([scores[..., part].logsumexp(-1) for part in parts], dim=1) / math.log(2)
    whole = scores.softmax(-1) @ values
    assert torch.allclose(reduced(partial, lse), whole.flatten(1), rtol=2**-8, atol=1e-6)


def test_empty_splits_and_far_normalisers_do_no_harm() -> None:
    partial, lse = partial_results(3)
    partial[:, 0], lse[:, 0] = 0, -math.inf
    lse[:, 1], lse[:, 2] = -500, 500
    assert torch.equal(reduced(partial, lse), partial[:, 2].flatten(1))


def test_units_are_heads() -> None:
    partial, lse = partial_results(4)
    whole = reduced(partial, lse).view(1, 3, 16)
    assert torch.equal(reduced(partial, lse, range(0, 4, 2)).view(1, 2, 16), whole[:, ::2])
    assert torch.equal(reduced(partial, lse, range(1, 2)).view(1, 1, 16), whole[:, 1:2])
