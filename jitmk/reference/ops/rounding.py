"""What opcodes have in common: the roundings that the device does, caps, and the values that units own."""

from __future__ import annotations

import torch

from jitmk.program.packing import UNIT_ROWS


def to_bf16(x: torch.Tensor) -> torch.Tensor:
    """Rounds to the nearest bf16 (ties to even); returns fp32, the shape of `x`."""
    return x.to(torch.bfloat16).to(torch.float32)


def soft_capped(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap * tanh(x / cap), which keeps x within (-cap, cap) (Gemma 2, arXiv:2408.00118); x without a cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def unit_values(units: range, values: int, per_unit: int = UNIT_ROWS) -> slice | torch.Tensor:
    """The indices of the values that belong to units of `per_unit` consecutive values; the last unit may be shorter.

    Args:
        units: a progression of units.
        values: how many values there are.

    Returns:
        A slice where the units are consecutive, else int64 [n].
    """
    if units.step == 1 or len(units) == 1:
        return slice(units.start * per_unit, min(values, (units[-1] + 1) * per_unit))
    starts = torch.arange(units.start, units.stop, units.step) * per_unit
    index = (starts[:, None] + torch.arange(per_unit)).flatten()
    return index[index < values]
