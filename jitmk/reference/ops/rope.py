"""ROPE, for units of a query or key head, and the rotation in attention's prologue."""

from __future__ import annotations

import torch

from jitmk.program.configs import RopeConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of pairs (i, i + rotary_dim / 2), in fp32, rounded to bf16 (Su et al. 2021, arXiv:2104.09864).

    Args:
        heads: [heads, head_dim].
        cos, sin: fp32 [rotary_dim / 2], of the token's position; empty for no rotation.
    """
    half = len(cos)
    low, high, rest = heads[:, :half], heads[:, half : 2 * half], heads[:, 2 * half :]
    return to_bf16(torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=1))


def rope(
    config: RopeConfig, units: range, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Rotates some heads.

    Args:
        config: shapes.
        units: query heads, then key heads.
        x: [tokens, values], laid out as qkv, bf16 values.
        cos, sin: fp32 [tokens, rotary_dim / 2], of each token's position.

    Returns:
        "output": [tokens, values of the heads], bf16 values.
    """
    heads = unit_values(units, config.heads + config.kv_heads, 1)
    rows = [
        rotate(row.view(-1, config.head_dim)[heads], *angles)
        for row, angles in zip(x, zip(cos, sin, strict=True), strict=True)
    ]
    return {"output": torch.stack(rows).flatten(1)}
