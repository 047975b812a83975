"""ATTENTION_REDUCE: merges the partial results of the splits, for units of one query head."""

from __future__ import annotations

import torch

from jitmk.program.configs import AttentionReduceConfig
from jitmk.reference.ops.merge import merged_splits
from jitmk.reference.ops.rounding import unit_values


def attention_reduce(
    config: AttentionReduceConfig, units: range, splits: int, partial: torch.Tensor, lse: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The attention output of some heads, from that of the splits: `merged_splits`.

    Args:
        config: shapes.
        units: query heads.
        splits: parts of the context.
        partial: [tokens, splits * heads * head_dim], bf16 values.
        lse: fp32 [tokens, splits * heads].

    Returns:
        "output": [tokens, values of the units], bf16 values.
    """
    heads, shape = unit_values(units, config.heads, 1), (len(partial), splits, config.heads)
    outputs, logarithms = partial.view(*shape, config.head_dim)[:, :, heads], lse.view(shape)[:, :, heads]
    return {"output": merged_splits(outputs.flatten(1), logarithms.flatten(1), len(units))}
