"""RESIDUAL_ADD: residual + scale * x, for units of 256 values."""

from __future__ import annotations

import torch

from jitmk.program.configs import ELEMENTWISE_VALUES, ResidualAddConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def residual_add(
    config: ResidualAddConfig, units: range, x: torch.Tensor, residual: torch.Tensor
) -> dict[str, torch.Tensor]:
    """residual + scale * x of some units.

    Args:
        config: shapes and scale.
        units: groups of 256 values.
        x: [tokens, values], bf16 values.
        residual: fp32 [tokens, values of the units].

    Returns:
        Both [tokens, values of the units]: "residual_out" fp32, "output" the same rounded to bf16.
    """
    total = residual + config.scale * x[:, unit_values(units, config.values, ELEMENTWISE_VALUES)]
    return {"output": to_bf16(total), "residual_out": total}
