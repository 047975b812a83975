"""The merge of attention over parts of the context (Flash-Decoding, Dao et al. 2023)."""

from __future__ import annotations

import torch

from jitmk.reference.ops.rounding import to_bf16


def merged_splits(outputs: torch.Tensor, lse: torch.Tensor, heads: int) -> torch.Tensor:
    """sum_s 2^(l_s - m) o_s / sum_s 2^(l_s - m) over the splits s, head by head, with m the largest l_s.

    Args:
        outputs: [tokens, splits * heads * head_dim]: each split's own attention o_s.
        lse: [tokens, splits * heads]: the logarithms of their normalisers, l_s, in units of log2; -inf where a split
            has no positions, which not all may be.
        heads: how many there are.

    Returns:
        [tokens, heads * head_dim], bf16 values.
    """
    tokens, splits = len(lse), lse.shape[1] // heads
    logarithms = lse.view(tokens, splits, heads, 1)
    weights = torch.exp2(logarithms - logarithms.amax(1, keepdim=True))
    values = outputs.view(tokens, splits, heads, -1)
    return to_bf16((weights * values).sum(1) / weights.sum(1)).flatten(1)
