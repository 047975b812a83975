from __future__ import annotations

import torch

from jitmk.program.configs import AddConfig
from jitmk.reference.ops.add import add
from jitmk.reference.ops.rounding import to_bf16


def test_sums_are_rounded() -> None:
    x, other = to_bf16(torch.randn(2, 2, 300))
    out = add(AddConfig(300, 1), range(1, 2), x, other)["output"]
    assert torch.equal(out, (x + other)[:, 256:].bfloat16().float())
