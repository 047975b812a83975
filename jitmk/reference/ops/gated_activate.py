"""GATED_ACTIVATE: f(gate) * up, for units of 256 values of the output."""

from __future__ import annotations

import torch

from jitmk.program.configs import ELEMENTWISE_VALUES, GatedActivateConfig
from jitmk.reference.ops.activate import apply_activation
from jitmk.reference.ops.rounding import to_bf16, unit_values


def gated_activate(config: GatedActivateConfig, units: range, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """f(gate) * up of some units.

    Args:
        config: shapes, and f.
        units: groups of 256 values of the output.
        x: [tokens, 2 * values]: gate, up, gate, up, ..., bf16 values.

    Returns:
        "output": [tokens, values of the units], bf16 values.
    """
    values = unit_values(units, config.values, ELEMENTWISE_VALUES)
    gate, up = x[:, 0::2][:, values], x[:, 1::2][:, values]
    return {"output": to_bf16(apply_activation(config.activation, gate) * up)}
