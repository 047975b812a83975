"""Words that tests write are the words that the engine reads."""

from __future__ import annotations

import pytest
import torch

from jitmk.engine.megakernel import read_buffer
from jitmk.errors import BackendError
from jitmk.program.program import Buffer, BufferKind
from tests.support.words import poison_words, read_candidates, write_candidates, write_words, written_words


def _arena(words: int, epoch: int) -> torch.Tensor:
    arena = torch.empty(words, dtype=torch.int64)
    poison_words(arena, epoch)
    return arena


@pytest.mark.parametrize("spread", [1, 4])
@pytest.mark.parametrize("kind", [BufferKind.BF16, BufferKind.FP32])
@pytest.mark.parametrize("epoch", [1, 2, 2**31 - 1])
def test_what_is_written_is_read(kind: BufferKind, epoch: int, spread: int) -> None:
    buffer = Buffer("x", kind, 80, tokens=1, copies=2, offset=64, spread=spread)
    values = torch.randn(80, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    values[:3] = torch.tensor([-0.0, float("inf"), -1.5])
    arena = _arena(buffer.offset + buffer.total_words + 32, epoch)
    write_words(arena, buffer, values, epoch)
    assert torch.equal(read_buffer(arena, buffer, epoch), values)
    touched = arena >> 32 == epoch
    assert torch.equal(touched, written_words([buffer], len(arena)))


def test_poison_is_stale_and_not_a_number() -> None:
    buffer = Buffer("x", BufferKind.FP32, 8, tokens=1, copies=1, offset=0)
    arena = _arena(32, epoch=7)
    with pytest.raises(BackendError, match="written in step 6, not in step 7"):
        read_buffer(arena, buffer, 7)
    assert bool(read_buffer(arena, buffer, 6).isnan().all())
    assert bool(read_buffer(arena, Buffer("x", BufferKind.BF16, 16, 1, 1, 0), 6).isnan().all())


def test_candidates_survive() -> None:
    buffer = Buffer("head", BufferKind.CANDIDATE, 1000, tokens=1, copies=1, offset=32)
    keys = torch.tensor([1.5, float("nan"), float("-inf")])
    ids = torch.tensor([0, 999, 0x7FFFFFFF])
    arena = _arena(buffer.offset + buffer.total_words, epoch=3)
    write_candidates(arena, buffer, keys, ids, 3)
    read_keys, read_ids = read_candidates(arena, buffer, 3, 3)
    assert torch.equal(read_ids, ids)
    assert torch.equal(read_keys.nan_to_num(7.0), keys.nan_to_num(7.0))
    assert torch.equal(arena >> 32 == 3, written_words([buffer], len(arena), candidates=3))
    with pytest.raises(AssertionError, match="missing"):
        read_candidates(arena, buffer, 4, 3)
