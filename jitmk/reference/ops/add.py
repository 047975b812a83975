"""ADD: x + other, for units of 256 values."""

from __future__ import annotations

import torch

from jitmk.program.configs import ELEMENTWISE_VALUES, AddConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def add(config: AddConfig, units: range, x: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    """x + other of some units; both [tokens, values], bf16 values, as is "output", [tokens, values of the units]."""
    values = unit_values(units, config.values, ELEMENTWISE_VALUES)
    return {"output": to_bf16(x[:, values] + other[:, values])}
