"""COPY: a part of a vector as it is, for units of 256 values."""

from __future__ import annotations

import torch

from jitmk.program.configs import ELEMENTWISE_VALUES, CopyConfig
from jitmk.reference.ops.rounding import unit_values


def copy(config: CopyConfig, units: range, first: int, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values of x from `first` on that belong to some units; x is [tokens, values], bf16 values."""
    some = x[:, first : first + config.values]
    return {"output": some[:, unit_values(units, config.values, ELEMENTWISE_VALUES)]}
