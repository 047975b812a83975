"""Words as tests write them: inputs for a phase that runs alone, and poison everywhere else."""

from __future__ import annotations

import torch

from jitmk.program.program import Buffer, BufferKind

_POISON = 0x7FC07FC0
"""A NaN, read as two bf16 or as one fp32."""


def poison_words(words: torch.Tensor, epoch: int) -> None:
    """Fills an arena, int64 [n], with NaN that an earlier step wrote: whoever takes it for this step's is found out."""
    words.fill_((epoch - 1) << 32 | _POISON)


def write_words(words: torch.Tensor, buffer: Buffer, values: torch.Tensor, epoch: int) -> None:
    """Publishes the values of a buffer, in every copy.

    Args:
        words: int64 [n], the arena.
        buffer: of kind BF16 or FP32.
        values: [values], rounded to what the buffer holds.
        epoch: of the step that reads them.
    """
    assert values.shape == (buffer.values,), (values.shape, buffer)
    if buffer.kind is BufferKind.BF16:
        payload = values.to(torch.bfloat16).contiguous().view(torch.int32)
    else:
        assert buffer.kind is BufferKind.FP32, buffer
        payload = values.to(torch.float32).contiguous().view(torch.int32)
    word = (payload.to(torch.int64) & 0xFFFFFFFF) | (epoch << 32)
    for copy in range(buffer.copies):
        words[buffer.places(copy).to(words.device)] = word.to(words.device)


def write_candidates(words: torch.Tensor, buffer: Buffer, keys: torch.Tensor, ids: torch.Tensor, epoch: int) -> None:
    """Publishes candidates of the LM head: fp32 keys and int64 token ids, [n] each."""
    assert buffer.kind is BufferKind.CANDIDATE and 2 * len(keys) <= buffer.words, (buffer, len(keys))
    pairs = torch.stack((keys.to(torch.float32).view(torch.int32), ids.to(torch.int32)), dim=1).flatten()
    word = (pairs.to(torch.int64) & 0xFFFFFFFF) | (epoch << 32)
    words[buffer.offset : buffer.offset + len(word)] = word.to(words.device)


def read_candidates(words: torch.Tensor, buffer: Buffer, count: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `count` candidates: keys fp32 [count] and ids int64 [count], on the CPU."""
    word = words[buffer.offset : buffer.offset + 2 * count].cpu()
    assert bool(((word >> 32) == epoch).all()), "a candidate is missing"
    low = word & 0xFFFFFFFF
    payload = torch.where(low >= 2**31, low - 2**32, low).to(torch.int32).view(count, 2)
    return payload[:, 0].contiguous().view(torch.float32), payload[:, 1].to(torch.int64)


def written_words(buffers: list[Buffer], arena_words: int, candidates: int = 0) -> torch.Tensor:
    """Where phases that write these buffers may write, bool [arena_words]."""
    allowed = torch.zeros(arena_words, dtype=torch.bool)
    for buffer in buffers:
        count = 2 * candidates if buffer.kind is BufferKind.CANDIDATE else buffer.words
        for copy in range(buffer.copies):
            allowed[buffer.places(copy)[:count]] = True
    return allowed
