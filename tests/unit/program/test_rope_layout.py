from __future__ import annotations

import pytest
import torch

from jitmk.model.rope import rope_table
from jitmk.model.spec import RopeKind
from jitmk.program.rope_layout import rope_offset, rope_rows, rope_stride
from tests.support.tiny import tiny_rope, tiny_spec


@pytest.mark.parametrize("prompt_length", [0, 90])
def test_tables_lie_side_by_side(prompt_length: int) -> None:
    ropes = tuple(
        tiny_rope(kind, dim) for kind, dim in ((RopeKind.YARN, 64), (RopeKind.DYNAMIC, 20), (RopeKind.LONGROPE, 48))
    )
    spec = tiny_spec(ropes=ropes)
    cos, sin = rope_rows(spec, range(5, 90), prompt_length)
    assert cos.shape == sin.shape == (85, rope_stride(spec)) and rope_stride(spec) == 3 * 32
    used = torch.zeros(rope_stride(spec), dtype=torch.bool)
    for index, rope in enumerate(ropes):
        begin = rope_offset(spec, index)
        columns = slice(begin, begin + rope.rotary_dim // 2)
        expected = rope_table(rope, range(5, 90), prompt_length)
        assert torch.equal(cos[:, columns], expected[0]) and torch.equal(sin[:, columns], expected[1])
        assert not used[columns].any(), "tables overlap"
        used[columns] = True
    assert (cos[:, ~used] == 0).all() and (sin[:, ~used] == 0).all()


def test_two_entries_are_one_aligned_load() -> None:
    spec = tiny_spec(ropes=(tiny_rope(RopeKind.DEFAULT, 22),) * 2)
    assert rope_offset(spec, 1) == 12 and rope_stride(spec) == 24


def test_a_model_without_rotation() -> None:
    assert rope_stride(tiny_spec(rope=None)) == 0
    assert rope_rows(tiny_spec(rope=None), range(3))[0].shape == (3, 0)
