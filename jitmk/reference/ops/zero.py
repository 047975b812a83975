"""ZERO: zeros, for units of 256 values."""

from __future__ import annotations

import torch

from jitmk.program.configs import ELEMENTWISE_VALUES, ZeroConfig
from jitmk.reference.ops.rounding import unit_values


def zero(config: ZeroConfig, units: range, tokens: int) -> dict[str, torch.Tensor]:
    """Zeros, [tokens, values of the units]."""
    return {"output": torch.zeros((tokens, config.values))[:, unit_values(units, config.values, ELEMENTWISE_VALUES)]}
