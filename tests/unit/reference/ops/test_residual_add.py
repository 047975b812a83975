from __future__ import annotations

import torch

from jitmk.program.configs import ResidualAddConfig
from jitmk.reference.ops.residual_add import residual_add
from jitmk.reference.ops.rounding import to_bf16


def test_scaled_values_are_added() -> None:
    x, residual = to_bf16(torch.randn(2, 300)), torch.randn(2, 300)
    config = ResidualAddConfig(300, 0.25, 1, 1)
    out = residual_add(config, range(1, 2), x, residual[:, 256:])
    assert torch.equal(out["residual_out"], residual[:, 256:] + x[:, 256:] / 4)
    assert torch.equal(out["output"], to_bf16(out["residual_out"]))
