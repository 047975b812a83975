"""How a weight matrix lies in memory: units and chunks, in the order in which the lanes of a warp want them.

A unit is 8 consecutive rows. Its columns are dealt to the consumer warps in contiguous slices, and a warp takes its
slice in blocks of 32 columns: 8 rows x 32 columns are 512 bytes, 16 a lane, which is what a tensor-core instruction
needs (`mma.m16n8k16` with the weights as A, whose lower 8 rows are the other 16 columns; the order of k within a block
is free as long as the activations follow it). A chunk is a piece of a unit: the same blocks of every warp's slice, 16
KB at most unless the model's rows call for another size (`chunks.py`). Slices are of one size; where they hold more
blocks than there are columns, the last warps have fewer of a unit of one chunk, and zeros in one of several.

    unit    [chunks]                    contiguous, `unit_bytes`
    chunk   [warps][blocks of chunk]    contiguous, as even as blocks allow
    block   [8 rows][32 columns]        bf16, row by row; of every 8 columns, 2 and 3 change places with 4 and 5

The four registers that a lane loads are then those that the instruction wants, in its order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

CONSUMER_WARPS = 8
UNIT_ROWS = 8
BLOCK_COLUMNS = 32
BLOCK_BYTES = UNIT_ROWS * BLOCK_COLUMNS * 2
CHAINS = 4
"""Blocks whose input stands side by side in a tensor-core instruction (vm/input.cuh)."""
CHUNK_LIMIT = 4
"""Blocks of one warp's slice in a chunk, at most, unless the model has another limit."""
GRAIN_BYTES = 256
"""Weights are addressed in grains, so that an int32 operand reaches 512 GB."""


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class MatrixLayout:
    """The packed form of a [rows, columns] bf16 matrix.

    Attributes:
        rows, columns: its shape.
        chunk_limit: blocks of one warp's slice in a chunk, at most.
    """

    rows: int
    columns: int
    chunk_limit: int = CHUNK_LIMIT

    @property
    def units(self) -> int:
        return ceil_div(self.rows, UNIT_ROWS)

    @property
    def blocks(self) -> int:
        """Blocks of 32 columns in a warp's slice."""
        return ceil_div(self.columns, CONSUMER_WARPS * BLOCK_COLUMNS)

    @property
    def slice_columns(self) -> int:
        """Columns of a warp's slice."""
        return self.blocks * BLOCK_COLUMNS

    @property
    def unit_blocks(self) -> int:
        """Blocks of a unit: of one chunk those that there are columns for, which lie in their order."""
        return ceil_div(self.columns, BLOCK_COLUMNS) if self.chunks == 1 else self.blocks * CONSUMER_WARPS

    @property
    def padded_columns(self) -> int:
        return self.unit_blocks * BLOCK_COLUMNS

    @property
    def chunks(self) -> int:
        """Chunks of a unit."""
        return ceil_div(self.blocks, self.chunk_limit)

    def first_block(self, chunk: int) -> int:
        """The first block of a warp's slice that lies in `chunk`; chunks are as even as they can be."""
        return self.blocks * chunk // self.chunks

    def chunk_blocks(self, chunk: int) -> int:
        return self.first_block(chunk + 1) - self.first_block(chunk)

    @property
    def unit_bytes(self) -> int:
        return UNIT_ROWS * self.padded_columns * 2

    @property
    def nbytes(self) -> int:
        return self.units * self.unit_bytes


def pack(matrix: torch.Tensor, out: torch.Tensor | None = None, *, chunk_limit: int = CHUNK_LIMIT) -> torch.Tensor:
    """Permutes a matrix into units and chunks.

    Args:
        matrix: [rows, columns] on any device; converted to bf16.
        out: where to, bf16 [units, unit_bytes / 2], contiguous, on the same device; None for a new tensor.
        chunk_limit: of the layout.

    Returns:
        `out`, zeros where rows or columns are padding.
    """
    rows, columns = matrix.shape
    layout = MatrixLayout(rows, columns, chunk_limit)
    if out is None:
        out = matrix.new_empty((layout.units, layout.unit_bytes // 2), dtype=torch.bfloat16)
    if matrix.shape == (layout.units * UNIT_ROWS, layout.padded_columns):
        padded = matrix.to(torch.bfloat16).contiguous()
    else:
        padded = matrix.new_zeros((layout.units * UNIT_ROWS, layout.padded_columns), dtype=torch.bfloat16)
        padded[: layout.rows, : layout.columns] = matrix
    for tiles, packed in _views(padded, out, layout):
        packed.copy_(tiles)
    return out


def unpack(packed: torch.Tensor, rows: int, columns: int, *, chunk_limit: int = CHUNK_LIMIT) -> torch.Tensor:
    """The inverse of `pack`: bf16 [rows, columns], a copy on the same device."""
    layout = MatrixLayout(rows, columns, chunk_limit)
    padded = packed.new_empty((layout.units * UNIT_ROWS, layout.padded_columns))
    for tiles, chunks in _views(padded, packed.view(layout.units, layout.unit_bytes // 2), layout):
        tiles.copy_(chunks)
    return padded[:rows, :columns]


def _views(
    padded: torch.Tensor, packed: torch.Tensor, layout: MatrixLayout
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows and packed form, shaped alike, for each run of equal chunks.

    [units, chunks, warps, blocks, rows, eights, 2, 2]: the last three are a row's words of two columns, which lie in
    another order when they are packed; whoever copies goes word by word.
    """
    eights = BLOCK_COLUMNS // 8
    # All blocks of one chunk are in their order, as if they were one warp's.
    warps, of_chunk = (1, lambda _: layout.unit_blocks) if layout.chunks == 1 else (CONSUMER_WARPS, layout.chunk_blocks)
    # [unit, row, warp, block, eight, half, word] -> [unit, warp, block, row, eight, word, half]
    tiles = padded.view(torch.int32).view(layout.units, UNIT_ROWS, warps, -1, eights, 2, 2)
    tiles = tiles.permute(0, 2, 3, 1, 4, 6, 5)
    flat = packed.view(torch.int32)
    for blocks, run in groupby(range(layout.chunks), of_chunk):
        chunks = len(list(run))
        shape = (chunks, warps, blocks, UNIT_ROWS, eights, 2, 2)
        some = tiles[:, :, : chunks * blocks].view(-1, warps, chunks, blocks, UNIT_ROWS, eights, 2, 2)
        yield some.permute(0, 2, 1, 3, 4, 5, 6, 7), flat[:, : math.prod(shape)].view(-1, *shape)
        tiles, flat = tiles[:, :, chunks * blocks :], flat[:, math.prod(shape) :]
