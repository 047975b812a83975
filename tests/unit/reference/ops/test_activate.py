from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from jitmk.model.spec import Activation
from jitmk.program.configs import ActivateConfig
from jitmk.reference.ops.activate import activate, apply_activation
from jitmk.reference.ops.rounding import to_bf16

FORMULAS: dict[Activation, Callable[[float], float]] = {
    Activation.SILU: lambda x: x / (1 + math.exp(-x)),
    Activation.GELU: lambda x: x / 2 * (1 + math.erf(x / 2**0.5)),
    Activation.GELU_TANH: lambda x: x / 2 * (1 + math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    Activation.RELU: lambda x: max(x, 0.0),
}


@pytest.mark.parametrize("activation", Activation)
def test_formulas(activation: Activation) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[activation](value) for value in x.tolist()], dtype=torch.float64)
    assert torch.allclose(apply_activation(activation, x), expected, rtol=0, atol=1e-12)


def test_units_are_256_rounded_values() -> None:
    x = to_bf16(torch.randn(2, 600))
    config = ActivateConfig(600, Activation.GELU, 1)
    whole = to_bf16(apply_activation(Activation.GELU, x))
    assert torch.equal(activate(config, range(3), x)["output"], whole)
    assert torch.equal(activate(config, range(1, 3), x)["output"], whole[:, 256:])
    assert torch.equal(activate(config, range(0, 3, 2), x)["output"], whole[:, [*range(256), *range(512, 600)]])
