from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.program.kv_layout import TILE_POSITIONS, KvLayout, read_tiles, write_tiles

HEAD_DIMS = (16, 32, 48, 64, 80, 96, 128, 256)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_element_of_a_tile_has_one_place(head_dim: int) -> None:
    layout = KvLayout(head_dim)
    places = torch.cat((layout.key_index().flatten(), layout.value_index().flatten()))
    assert sorted(places.tolist()) == list(range(layout.tile_elements))
    assert layout.key_index().max() < TILE_POSITIONS * head_dim, "keys come first"


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_pairs_of_keys_share_a_word(head_dim: int) -> None:
    """The append stores a key two dims at a time."""
    index = KvLayout(head_dim).key_index()
    assert (index[:, 0::2] % 2 == 0).all() and (index[:, 1::2] == index[:, 0::2] + 1).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(HEAD_DIMS), st.integers(1, 3), st.integers(0, 40), st.integers(1, 40))
def test_what_is_written_is_read(head_dim: int, heads: int, start: int, count: int) -> None:
    layout = KvLayout(head_dim)
    cache = torch.full((heads, layout.tiles(start + count) + 1, layout.tile_elements), torch.nan).bfloat16()
    keys, values = torch.randn(2, heads, start + count, head_dim).bfloat16()
    for begin, end in ((0, start), (start, start + count)):
        write_tiles(cache, layout, begin, keys[:, begin:end], values[:, begin:end])
    read_keys, read_values = read_tiles(cache, layout, start + count)
    assert torch.equal(read_keys, keys) and torch.equal(read_values, values)


def test_tiles_are_rounded_up() -> None:
    layout = KvLayout(64)
    assert [layout.tiles(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert layout.tile_bytes == 2 * 16 * 64 * 2
