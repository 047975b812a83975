"""Rows of the rope tables, one position at a time, made in blocks because a row by itself costs as much as a block."""

from __future__ import annotations

import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.rope_layout import rope_rows

_BLOCK = 256


class RopeRows:
    """cos and sin of any position of a model, kept once they are made."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._blocks: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def at(self, position: int, prompt_length: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of all ropes, each fp32 [rope_stride]; `prompt_length` as for `rope_table`."""
        block, row = divmod(position, _BLOCK)
        key = block, prompt_length
        if key not in self._blocks:
            positions = range(block * _BLOCK, (block + 1) * _BLOCK)
            self._blocks[key] = rope_rows(self._spec, positions, prompt_length)
        cos, sin = self._blocks[key]
        return cos[row], sin[row]
