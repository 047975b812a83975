"""How old keys and values lie in memory: tiles of 16 positions, in the order in which the lanes of a warp want them.

The cache of one layer, sequence and key/value head is a row of tiles. A tile holds the keys and then the values of
16 consecutive positions, so that one contiguous bulk copy brings a warp all that it needs for them.

    keys    [2 halves][blocks of 32 dims][8 positions][32 dims], then a block of 16 dims where head_dim needs it
    values  [pairs of 16 dims][8 dims][4 quads][2 dim octets][2 halves][2 positions]

Keys are the B operand of scores = Q K^T. Values are the B operand of P V, where k runs over positions. Of either, a
lane's 16 bytes are the fragments of two neighbouring `mma.m16n8k16`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

TILE_POSITIONS = 16


@dataclass(frozen=True)
class KvLayout:
    """The tile of one head."""

    head_dim: int

    @property
    def tile_elements(self) -> int:
        """bf16 elements of a tile, keys and values."""
        return 2 * TILE_POSITIONS * self.head_dim

    @property
    def tile_bytes(self) -> int:
        return 2 * self.tile_elements

    def tiles(self, positions: int) -> int:
        return -(-positions // TILE_POSITIONS)

    def key_index(self) -> torch.Tensor:
        """int64 [16, head_dim]: the element of a tile where a position's key dimension lies."""
        position = torch.arange(TILE_POSITIONS)[:, None]
        dim = torch.arange(self.head_dim)[None, :]
        half, row = position // 8, position % 8
        block = dim // 32
        width = torch.where(block < self.head_dim // 32, 32, 16)
        return half * 8 * self.head_dim + block * 256 + row * width + dim % 32

    def value_index(self) -> torch.Tensor:
        """int64 [16, head_dim]: the element of a tile where a position's value dimension lies."""
        position = torch.arange(TILE_POSITIONS)[:, None]
        dim = torch.arange(self.head_dim)[None, :]
        half, quad, odd = position // 8, position % 8 // 2, position % 2
        pair, octet, n = dim // 16, dim % 16 // 8, dim % 8
        index = pair * 256 + n * 32 + quad * 8 + octet * 4 + half * 2 + odd
        return TILE_POSITIONS * self.head_dim + index


def write_tiles(cache: torch.Tensor, layout: KvLayout, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Stores keys and values of consecutive positions.

    Args:
        cache: bf16 [kv_heads, tiles, tile_elements], changed in place.
        start: position of the first row of keys.
        keys, values: [kv_heads, positions, head_dim], rotated already; rounded to bf16.
    """
    position = torch.arange(start, start + keys.shape[1], device=cache.device)
    tile, row = (position // TILE_POSITIONS)[:, None], position % TILE_POSITIONS
    key_index, value_index = _indices(layout, cache.device)
    cache[:, tile, key_index[row]] = keys.to(cache.dtype)
    cache[:, tile, value_index[row]] = values.to(cache.dtype)


def read_tiles(cache: torch.Tensor, layout: KvLayout, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the first `positions` positions, each bf16 [kv_heads, positions, head_dim]."""
    tiles = cache[:, : layout.tiles(positions)]
    key_index, value_index = _indices(layout, cache.device)
    keys, values = tiles[:, :, key_index].flatten(1, 2), tiles[:, :, value_index].flatten(1, 2)
    return keys[:, :positions], values[:, :positions]


@cache
def _indices(layout: KvLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`key_index` and `value_index` on a device, made once: every layer of a prompt asks."""
    return layout.key_index().to(device), layout.value_index().to(device)
