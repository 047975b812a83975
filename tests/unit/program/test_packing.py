from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.program.packing import (
    BLOCK_BYTES,
    BLOCK_COLUMNS,
    CONSUMER_WARPS,
    UNIT_ROWS,
    MatrixLayout,
    pack,
    unpack,
)

ROWS = st.integers(1, 40)
COLUMNS = st.integers(1, 300).map(lambda n: 16 * n)
LIMITS = st.sampled_from([3, 4, 5])


@settings(max_examples=30, deadline=None)
@given(ROWS, COLUMNS, LIMITS)
def test_unpack_inverts_pack(rows: int, columns: int, limit: int) -> None:
    matrix = torch.randn(rows, columns).bfloat16()
    packed = pack(matrix, chunk_limit=limit)
    layout = MatrixLayout(rows, columns, limit)
    assert packed.shape == (layout.units, layout.unit_bytes // 2)
    assert torch.equal(unpack(packed, rows, columns, chunk_limit=limit), matrix)


@settings(max_examples=30, deadline=None)
@given(ROWS, COLUMNS)
def test_padding_is_zero(rows: int, columns: int) -> None:
    packed = pack(torch.ones(rows, columns))
    assert packed.float().sum() == rows * columns


@settings(max_examples=50, deadline=None)
@given(ROWS, COLUMNS, LIMITS)
def test_chunks_tile_a_unit(rows: int, columns: int, limit: int) -> None:
    layout = MatrixLayout(rows, columns, limit)
    sizes = [layout.chunk_blocks(chunk) for chunk in range(layout.chunks)]
    assert sum(sizes) == layout.blocks
    assert max(sizes) - min(sizes) <= 1
    assert all(0 < size <= limit for size in sizes)
    of_slices = sum(size * CONSUMER_WARPS * BLOCK_BYTES for size in sizes)
    if layout.chunks == 1:
        assert 0 <= layout.padded_columns - columns < BLOCK_COLUMNS
        assert layout.unit_bytes == layout.padded_columns // BLOCK_COLUMNS * BLOCK_BYTES <= of_slices
    else:
        assert layout.padded_columns - columns < CONSUMER_WARPS * BLOCK_COLUMNS
        assert of_slices == layout.unit_bytes


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 200).map(lambda n: 16 * n), LIMITS, st.data())
def test_an_element_lies_where_the_kernel_looks(rows: int, columns: int, limit: int, data: st.DataObject) -> None:
    """[unit][chunk][warp][block][8 rows][32 columns in another order], written out for one element."""
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    matrix = torch.zeros(rows, columns)
    matrix[row, column] = 1
    layout = MatrixLayout(rows, columns, limit)
    warp, within = divmod(column, layout.slice_columns)
    block, k = divmod(within, BLOCK_COLUMNS)
    chunk = next(c for c in range(layout.chunks) if block < layout.first_block(c + 1))
    first, blocks = layout.first_block(chunk), layout.chunk_blocks(chunk)
    place = (first * CONSUMER_WARPS + warp * blocks + block - first) * 256 + row % UNIT_ROWS * BLOCK_COLUMNS
    place += k // 8 * 8 + (0, 1, 4, 5, 2, 3, 6, 7)[k % 8]
    assert pack(matrix, chunk_limit=limit)[row // UNIT_ROWS, place] == 1
