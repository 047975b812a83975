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
    merged = merge_splits(config.heads, splits, partial, lse)
    return {"output": merged[:, unit_values(units, config.heads, 1)].flatten(1)}


def merge_splits(heads: int, splits: int, partial: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """The same for all heads: [tokens, heads, head_dim], bf16 values. Arguments are those of `attention_reduce`."""
    values = partial.view(len(partial), splits, heads, -1)
    logarithms = lse.view(len(lse), splits, heads, LSE_WORDS)[..., :1]
    weights = torch.exp2(logarithms - logarithms.amax(1, keepdim=True))
    return to_bf16((weights * values).sum(1) / weights.sum(1))
