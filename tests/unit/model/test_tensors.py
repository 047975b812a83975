"""Tensors inside stored ones: what is put there is taken out again, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch

from jitmk.model.families import InterleavedPairs, TensorRef
from jitmk.model.tensors import put, take

REFS = [
    TensorRef("x"),
    TensorRef("x", transpose=True),
    TensorRef("x", rows=(8, 24)),
    TensorRef("x", rows=(8, 24), transpose=True),
    TensorRef("x", row_order=InterleavedPairs(8)),
    TensorRef("x", row_order=InterleavedPairs(8, axis=1)),
    TensorRef("x", rows=(8, 24), row_order=InterleavedPairs(8)),
]


@pytest.mark.parametrize("ref", REFS)
def test_put_is_the_inverse_of_take(ref: TensorRef) -> None:
    stored = torch.arange(32.0 * 48).reshape(32, 48)
    empty = torch.full_like(stored, -1)
    part = take(stored, ref)
    assert part.is_contiguous()
    put(empty, ref, part)
    touched = empty != -1
    assert torch.equal(empty[touched], stored[touched])
    assert int(touched.sum()) == part.numel()
    assert torch.equal(take(empty, ref), part)


def test_interleaved_pairs_come_apart() -> None:
    stored = torch.arange(8.0)  # two heads of two pairs
    assert take(stored, TensorRef("x", row_order=InterleavedPairs(4))).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_whole_tensor_is_not_copied() -> None:
    stored = torch.zeros(4, 4)
    assert take(stored, TensorRef("x")).data_ptr() == stored.data_ptr()
    assert take(stored, TensorRef("x", rows=(0, 2))).data_ptr() == stored.data_ptr()
