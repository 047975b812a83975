"""ATTENTION_REDUCE: merges the partial results of the splits, for units of one query head."""

from __future__ import annotations

import torch

from jitmk.program.configs import PARTIAL_EXTRA, AttentionReduceConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def attention_reduce(
    config: AttentionReduceConfig, units: range, splits: int, partial: torch.Tensor
) -> dict[str, torch.Tensor]:
    """sum_s 2^(m_s - m) v_s / sum_s 2^(m_s - m) l_s over the splits s, with m the largest m_s.

    Args:
        config: shapes.
        units: query heads.
        splits: parts of the context.
        partial: fp32 [tokens, splits * heads * (head_dim + 2)]: sums v_s, maximum m_s, normaliser l_s.

    Returns:
        "output": [tokens, values of the units], bf16 values.
    """
    size = config.head_dim + PARTIAL_EXTRA
    by_head = partial.view(len(partial), splits, config.heads, size)[:, :, unit_values(units, config.heads, 1)]
    values = by_head[..., : config.head_dim]
    maxima, normalisers = by_head[..., config.head_dim : -1], by_head[..., -1:]
    used = normalisers > 0  # a split without positions has the maximum -inf
    largest = torch.where(used, maxima, -torch.inf).amax(1, keepdim=True)
    weights = torch.where(used, torch.exp2(maxima - largest), 0.0)
    merged = (weights * values).sum(1) / (weights * normalisers).sum(1)
    return {"output": to_bf16(merged).flatten(1)}
