"""ACTIVATE, for units of 256 values, and the activations that epilogues apply."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from jitmk.model.spec import Activation
from jitmk.program.configs import ELEMENTWISE_VALUES, ActivateConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def apply_activation(activation: Activation | None, x: torch.Tensor) -> torch.Tensor:
    """f(x) in the type of `x`.

    SILU x * sigmoid(x); GELU x * Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016, arXiv:1606.08415);
    GELU_TANH its approximation by a tanh; RELU max(x, 0).
    """
    if activation is Activation.SILU:
        return F.silu(x)
    if activation is Activation.GELU:
        return F.gelu(x)
    if activation is Activation.GELU_TANH:
        return F.gelu(x, approximate="tanh")
    assert activation is Activation.RELU, activation
    return F.relu(x)


def activate(config: ActivateConfig, units: range, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """f(x) of some units.

    Args:
        config: shapes, and f.
        units: groups of 256 values.
        x: [tokens, values], bf16 values.

    Returns:
        "output": [tokens, values of the units], bf16 values.
    """
    values = unit_values(units, config.values, ELEMENTWISE_VALUES)
    return {"output": to_bf16(apply_activation(config.activation, x[:, values]))}
