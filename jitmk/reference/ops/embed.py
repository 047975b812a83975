"""EMBED: residual = table[token]."""

from __future__ import annotations

import torch

from jitmk.program.program import EmbedConfig
from jitmk.reference.ops.rounding import unit_values


def embed(config: EmbedConfig, units: range, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Looks up the residual's values of some units.

    Args:
        config: shapes.
        units: groups of 8 values of the residual.
        rows: [tokens, hidden_size], the tokens' rows of the embedding (bf16 values).

    Returns:
        "output" and "residual_out", both [tokens, values of the units]: the table is bf16, so they are equal.
    """
    values = rows[:, unit_values(units, config.hidden_size)].to(torch.float32)
    return {"output": values, "residual_out": values}
