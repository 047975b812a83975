"""cos and sin for whole prompts, on the device, kept from one prompt to the next where they do not depend on it."""

from __future__ import annotations

import torch

from jitmk.model.rope import rope_table
from jitmk.model.spec import ModelSpec, RopeKind, RopeSpec

Rotation = tuple[torch.Tensor, torch.Tensor]
"""cos and sin of some positions, each fp32 [n, rotary_dim / 2]."""

_OF_LENGTH = (RopeKind.DYNAMIC, RopeKind.LONGROPE)
"""Kinds whose frequencies depend on the length of the prompt, if that is longer than the pretrained context."""
_LEAST = 512
"""Positions that a table has at least: it grows seldom."""


class RopeTables:
    """Tables of every rope of a model for all positions up to the longest that was asked for."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._kept: dict[int, Rotation] = {}

    def rows(self, start: int, end: int, prompt_length: int) -> list[Rotation]:
        """The rows of positions [start, end) of each of `spec.ropes`; `prompt_length` is what `rope_table` takes."""
        return [self._rows(index, rope, start, end, prompt_length) for index, rope in enumerate(self._spec.ropes)]

    def _rows(self, index: int, rope: RopeSpec, start: int, end: int, prompt_length: int) -> Rotation:
        if rope.kind in _OF_LENGTH and prompt_length > rope.original_max_positions:
            return rope_table(rope, range(start, end), prompt_length, self._device)
        cos, sin = self._kept.get(index, (torch.empty(0), torch.empty(0)))
        if len(cos) < end:
            length = min(max(_LEAST, 1 << (end - 1).bit_length()), max(end, self._spec.max_positions))
            cos, sin = self._kept[index] = rope_table(rope, range(length), 0, self._device)
        return cos[start:end], sin[start:end]
