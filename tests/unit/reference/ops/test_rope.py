from __future__ import annotations

import torch

from jitmk.program.configs import RopeConfig
from jitmk.reference.ops.rope import rope, rotate
from jitmk.reference.ops.rounding import to_bf16


def test_rotation_turns_pairs_and_leaves_the_rest() -> None:
    heads = to_bf16(torch.randn(2, 8))
    angle = torch.tensor([0.5, 2.0])
    turned = rotate(heads, angle.cos(), angle.sin())
    pairs = torch.complex(heads[:, :2], heads[:, 2:4]) * torch.polar(torch.ones(2), angle)
    assert torch.allclose(turned[:, :2], pairs.real, atol=2**-7) and torch.allclose(
        turned[:, 2:4], pairs.imag, atol=2**-7
    )
    assert torch.equal(turned[:, 4:], heads[:, 4:])
    assert torch.equal(turned, to_bf16(turned))


def test_units_are_query_and_key_heads() -> None:
    config = RopeConfig(3, 2, 16, 8, 4)
    x = to_bf16(torch.randn(2, (3 + 2 * 2) * 16))
    angles = torch.rand(2, 4)
    whole = rope(config, range(5), x, angles.cos(), angles.sin())["output"].view(2, 5, 16)
    for token in range(2):
        expected = rotate(x[token].view(7, 16)[:5], angles[token].cos(), angles[token].sin())
        assert torch.equal(whole[token], expected)
    some = rope(config, range(1, 5, 3), x, angles.cos(), angles.sin())["output"]
    assert torch.equal(some, whole[:, [1, 4]].flatten(1))
