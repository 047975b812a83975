from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from jitmk.model.spec import NormKind
from jitmk.program.configs import ResidualNormAddConfig
from jitmk.reference.ops.residual_norm_add import residual_norm_add
from jitmk.reference.ops.rounding import to_bf16

VALUES, EPS = 520, 1e-3


@pytest.mark.parametrize("kind", NormKind)
def test_scaled_norms_are_added(kind: NormKind) -> None:
    x, residual = to_bf16(torch.randn(2, VALUES) + 1), 10 * torch.randn(2, VALUES)
    weight, bias = torch.randn(VALUES), torch.randn(VALUES)
    config = ResidualNormAddConfig(VALUES, kind, EPS, kind is NormKind.LAYER, 0.5, 1, 1)
    if kind is NormKind.RMS:
        added = functional.rms_norm(x, (VALUES,), weight, EPS)
    else:
        added = functional.layer_norm(x, (VALUES,), weight, bias, EPS)
    out = residual_norm_add(config, range(3), x, residual, weight, bias if config.bias else None)
    assert torch.allclose(out["residual_out"], residual + 0.5 * added, rtol=1e-5, atol=1e-5)
    assert torch.equal(out["output"], to_bf16(out["residual_out"]))


def test_units_are_256_values_of_a_norm_over_all() -> None:
    x, residual = to_bf16(torch.randn(1, VALUES)), torch.randn(1, VALUES)
    config = ResidualNormAddConfig(VALUES, NormKind.RMS, EPS, False, 1.0, 0, 2)
    whole = residual_norm_add(config, range(3), x, residual, torch.ones(VALUES))["residual_out"]
    last = residual_norm_add(config, range(1, 3), x, residual[:, 256:], torch.ones(VALUES))["residual_out"]
    assert torch.equal(last, whole[:, 256:])
