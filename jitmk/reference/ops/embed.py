"""EMBED: residual = scale * table[token] + positions[position]."""

from __future__ import annotations

import torch

from jitmk.program.configs import EmbedConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def embed(
    config: EmbedConfig, units: range, rows: torch.Tensor, positions: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Looks up the residual's values of some units.

    Args:
        config: shapes and scale.
        units: groups of 8 values of the residual.
        rows: [tokens, hidden_size], the tokens' rows of the embedding (bf16 values).
        positions: [tokens, hidden_size], the rows of their positions, if those are learned (bf16 values).

    Returns:
        Both [tokens, values of the units]: "residual_out" fp32, "output" the same rounded to bf16.
    """
    values = unit_values(units, config.hidden_size)
    total = rows[:, values].to(torch.float32) * config.scale
    if positions is not None:
        total = total + positions[:, values]
    return {"output": to_bf16(total), "residual_out": total}
