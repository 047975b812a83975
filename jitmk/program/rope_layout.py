"""How the rope tables of a model lie in memory, which is also how the CPU machines hold them.

    rope    [positions][ropes][columns][cos, sin]     fp32

Columns are those of the widest table (rotary_dim / 2), rounded up to an even number; the others leave the rest of their
place unused. Position-major, so that neither an operand nor a stride depends on how many positions there are.
"""

from __future__ import annotations

import torch

from jitmk.model.rope import rope_table
from jitmk.model.spec import ModelSpec
from jitmk.program.packing import ceil_div


def rope_stride(spec: ModelSpec) -> int:
    """Entries (cos and sin) from one position to the next."""
    return len(spec.ropes) * _columns(spec)


def rope_offset(spec: ModelSpec, rope: int) -> int:
    """The entry of a position with which the table of `spec.ropes[rope]` begins: the operand `rope`."""
    return rope * _columns(spec)


def rope_rows(spec: ModelSpec, positions: range, prompt_length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of all ropes, side by side.

    Args:
        positions: n positions.
        prompt_length: as for `rope_table`.

    Returns:
        (cos, sin), each fp32 [n, rope_stride] on the CPU; zeros where nothing is used.
    """
    cos, sin = (torch.zeros((len(positions), rope_stride(spec))) for _ in range(2))
    for index, rope in enumerate(spec.ropes):
        begin = rope_offset(spec, index)
        end = begin + rope.rotary_dim // 2
        cos[:, begin:end], sin[:, begin:end] = rope_table(rope, positions, prompt_length)
    return cos, sin


def _columns(spec: ModelSpec) -> int:
    # Even, so that two neighbouring entries are one aligned load.
    return ceil_div(spec.rotary_dim // 2, 2) * 2
