"""The KV cache of a live model: the tiles of `program/kv_layout.py`, for every layer and key/value head."""

from __future__ import annotations

import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.kv_layout import KvLayout, read_tiles, write_tiles


def kv_cache_bytes(spec: ModelSpec, max_seq_len: int, tokens: int = 1) -> int:
    """Bytes of the cache of `tokens` sequences of `max_seq_len` positions."""
    layout = KvLayout(spec.head_dim)
    return spec.num_layers * tokens * spec.num_kv_heads * layout.tiles(max_seq_len) * layout.tile_bytes


class KvCache:
    """Keys (rotated) and values of every position so far.

    Attributes:
        tensor: bf16 [layers, tokens, kv_heads, tiles, tile_elements]. Zero at first: attention multiplies what lies
            behind the last position of a tile with a probability of zero, which must not meet an infinity or a NaN.
        layout: how a tile holds its 16 positions.
        max_seq_len: positions that fit.
    """

    def __init__(self, spec: ModelSpec, max_seq_len: int, device: torch.device, tokens: int = 1) -> None:
        self.layout = KvLayout(spec.head_dim)
        self.max_seq_len = max_seq_len
        shape = (
            spec.num_layers,
            tokens,
            spec.num_kv_heads,
            self.layout.tiles(max_seq_len),
            self.layout.tile_elements,
        )
        self.tensor = torch.zeros(shape, dtype=torch.bfloat16, device=device)

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor, token: int = 0) -> None:
        """Stores consecutive positions from `start` on; keys and values are [kv_heads, positions, head_dim]."""
        write_tiles(self.tensor[layer, token], self.layout, start, keys, values)

    def read(self, layer: int, positions: int, token: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first positions, each bf16 [kv_heads, positions, head_dim]."""
        return read_tiles(self.tensor[layer, token], self.layout, positions)

    def clear(self) -> None:
        """Forgets every position."""
        self.tensor.zero_()
