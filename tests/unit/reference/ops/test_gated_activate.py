from __future__ import annotations

import torch

from jitmk.model.spec import Activation
from jitmk.program.configs import GatedActivateConfig
from jitmk.reference.ops.gated_activate import gated_activate
from jitmk.reference.ops.rounding import to_bf16


def test_gates_and_ups_alternate() -> None:
    gate, up = to_bf16(torch.randn(2, 3, 300))
    x = torch.stack((gate, up), dim=2).flatten(1)
    config = GatedActivateConfig(300, Activation.SILU, 1)
    expected = to_bf16(gate * torch.sigmoid(gate) * up)
    out = gated_activate(config, range(2), x)["output"]
    assert torch.allclose(out, expected, rtol=2**-7, atol=0) and torch.equal(out, to_bf16(out))
    assert torch.equal(gated_activate(config, range(1, 2), x)["output"], out[:, 256:])
