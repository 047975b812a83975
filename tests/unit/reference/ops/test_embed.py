from __future__ import annotations

import torch

from jitmk.program.configs import EmbedConfig
from jitmk.reference.ops.embed import embed
from jitmk.reference.ops.rounding import to_bf16


def test_units_are_eight_values() -> None:
    rows = torch.arange(2 * 20.0).view(2, 20)
    config = EmbedConfig(50, 20, False, 1)
    out = embed(config, range(1, 3), rows)
    assert torch.equal(out["output"], rows[:, 8:20]) and torch.equal(out["residual_out"], out["output"])
    assert torch.equal(embed(config, range(0, 4, 2), rows)["output"], rows[:, [*range(8), *range(16, 20)]])


def test_rows_are_scaled_and_positions_added() -> None:
    rows, positions = to_bf16(torch.randn(2, 2, 24))
    out = embed(EmbedConfig(50, 24, True, 2, 2, 3.0, True), range(1, 3), rows, positions)
    assert torch.equal(out["residual_out"], (rows * 3 + positions)[:, 8:])
    assert torch.equal(out["output"], to_bf16(out["residual_out"]))
