"""ATTENTION_REDUCE: merges the partial results of the splits, for units of one query head."""

from __future__ import annotations

import torch

from jitmk.program.configs import LSE_WORDS, AttentionReduceConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def attention_reduce(
    config: AttentionReduceConfig, units: range, splits: int, partial: torch.Tensor, lse: torch.Tensor
) -> dict[str, torch.Tensor]:
    """sum_s 2^(l_s - m) o_s / sum_s 2^(l_s - m) over the splits s, with m the largest l_s.

    Args:
        config: shapes.
        units: query heads.
        splits: parts of the context.
        partial: [tokens, splits * heads * head_dim], bf16 values: each split's own attention o_s.
        lse: fp32 [tokens, splits * heads * LSE_WORDS]: the logarithms of their normalisers, l_s, in units of log2,
            LSE_WORDS times; -inf where a split has no positions, which not all may be.

    Returns:
        "output": [tokens, values of the units], bf16 values.
    """
    heads, shape = unit_values(units, config.heads, 1), (len(partial), splits, config.heads)
    values = partial.view(*shape, config.head_dim)[:, :, heads]
    logarithms = lse.view(*shape, LSE_WORDS)[:, :, heads, :1]
    weights = torch.exp2(logarithms - logarithms.amax(1, keepdim=True))
    return {"output": to_bf16((weights * values).sum(1) / weights.sum(1)).flatten(1)}
