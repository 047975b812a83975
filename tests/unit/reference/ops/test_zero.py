from __future__ import annotations

import torch

from jitmk.program.configs import ZeroConfig
from jitmk.reference.ops.zero import zero


def test_zeros_of_some_units() -> None:
    assert torch.equal(zero(ZeroConfig(300, 1), range(2), 2)["output"], torch.zeros(2, 300))
    assert torch.equal(zero(ZeroConfig(300, 1), range(1, 2), 1)["output"], torch.zeros(1, 44))
