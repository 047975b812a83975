"""RESIDUAL_NORM_ADD: residual + scale * norm(x), for units of 256 values."""

from __future__ import annotations

import torch

from jitmk.program.configs import ELEMENTWISE_VALUES, ResidualNormAddConfig
from jitmk.reference.ops.norm import normalise
from jitmk.reference.ops.rounding import to_bf16, unit_values


def residual_norm_add(
    config: ResidualNormAddConfig,
    units: range,
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    sums: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """residual + scale * norm(x), for some units.

    Args:
        config: shapes, kind and scale.
        units: groups of 256 values.
        x: [tokens, values], bf16 values: all of it, for the norm.
        residual: fp32 [tokens, values of the units].
        weight, bias: [values].
        sums: the type in which values are added.

    Returns:
        Both [tokens, values of the units]: "residual_out" fp32, "output" the same rounded to bf16.
    """
    values = unit_values(units, config.values, ELEMENTWISE_VALUES)
    normed = normalise(config.kind, x, weight, bias, config.eps, sums)[:, values]
    total = (residual + config.scale * normed).float()
    return {"output": to_bf16(total), "residual_out": total}
