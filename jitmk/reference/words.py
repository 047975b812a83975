"""The word arena on the CPU: payloads with epochs, as on the device, and the bookkeeping that proves races."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jitmk.errors import ScheduleError
from jitmk.program.program import BufferKind

Payload = npt.NDArray[np.uint32]


class RaceError(ScheduleError):
    """Two instructions touched the same words in an order that nothing enforces, or that loses a value."""


class WordArena:
    """Words that many SMs read and write.

    Beside payload and epoch, which the device has too, every word remembers which buffer wrote it and how many of its
    readers are still to come. On the device a race would be a wrong number; here it is an error.

    Args:
        readers: int64 [words], how many reads each word gets in every step.
    """

    def __init__(self, readers: npt.NDArray[np.int64]) -> None:
        self._readers = readers
        self._payload: Payload = np.zeros(len(readers), dtype=np.uint32)
        self._epoch = np.zeros(len(readers), dtype=np.int64)
        self._writer = np.full(len(readers), "", dtype=object)
        self._to_come = np.zeros(len(readers), dtype=np.int64)

    def first_missing(self, words: slice, epoch: int) -> int | None:
        """The first of the words that this epoch has not written yet; None if all are there."""
        missing = self._epoch[words] < epoch
        return words.start + int(missing.argmax()) if missing.any() else None

    def read(self, words: slice, epoch: int, buffer: str, reader: str) -> Payload:
        """A copy of words that are all there.

        Args:
            words: where.
            epoch: whose values are wanted.
            buffer: the buffer that they should belong to.
            reader: who reads, for errors.

        Raises:
            RaceError: a later step overwrote a word, or another buffer did.
        """
        newer = self._epoch[words] > epoch
        if newer.any():
            at = words.start + int(newer.argmax())
            raise RaceError(
                f"{reader} reads word {at} of buffer {buffer!r} in epoch {epoch}, but {self._writer[at]} "
                f"overwrote it in epoch {self._epoch[at]}"
            )
        foreign = np.array([writer.partition(":")[0] != buffer for writer in self._writer[words]], dtype=np.bool_)
        if foreign.any():
            at = words.start + int(foreign.argmax())
            raise RaceError(
                f"{reader} reads word {at} as part of buffer {buffer!r}, but finds a value of {self._writer[at]}"
            )
        self._to_come[words] -= 1
        return self._payload[words].copy()

    def peek(self, words: slice) -> Payload:
        """A copy of words as they are, unchecked and uncounted."""
        return self._payload[words].copy()

    def write(self, words: slice, payload: Payload, epoch: int, buffer: str, writer: str) -> None:
        """Publishes words, each once an epoch.

        Raises:
            RaceError: this epoch wrote a word already, or a reader of the epoch before is still to come.
        """
        twice = self._epoch[words] >= epoch
        if twice.any():
            at = words.start + int(twice.argmax())
            raise RaceError(
                f"{writer} writes word {at} (buffer {buffer!r}) in epoch {epoch}, but {self._writer[at]} wrote it in "
                f"epoch {self._epoch[at]} already"
            )
        unread = (self._to_come[words] > 0) & (self._epoch[words] > 0)
        if unread.any():
            at = words.start + int(unread.argmax())
            raise RaceError(
                f"{writer} overwrites word {at} (buffer {buffer!r}) in epoch {epoch}, but {self._to_come[at]} readers "
                f"of its value by {self._writer[at]} of epoch {self._epoch[at]} are still to come"
            )
        self._payload[words] = payload
        self._epoch[words] = epoch
        self._writer[words] = f"{buffer}: {writer}"
        self._to_come[words] = self._readers[words]


def value_words(kind: BufferKind, begin: int, end: int) -> tuple[int, int]:
    """The words of one token that hold values [begin, end) of a buffer of numbers."""
    return (begin // 2, -(-end // 2)) if kind is BufferKind.BF16 else (begin, end)


def to_words(kind: BufferKind, values: npt.NDArray[np.float32]) -> Payload:
    """The payloads of consecutive values: two bf16 a word, the first in the low half, or one fp32."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    if kind is not BufferKind.BF16:
        return bits.copy()
    if len(bits) % 2:
        bits = np.append(bits, np.uint32(0))
    assert not (bits & 0xFFFF).any(), "a value of a bf16 buffer was not rounded to bf16"
    return bits[0::2] >> np.uint32(16) | bits[1::2]


def from_words(kind: BufferKind, payload: Payload, count: int) -> npt.NDArray[np.float32]:
    """The first `count` values of consecutive words."""
    if kind is not BufferKind.BF16:
        return payload[:count].view(np.float32)
    bits = np.empty(2 * len(payload), dtype=np.uint32)
    bits[0::2], bits[1::2] = payload << np.uint32(16), payload & np.uint32(0xFFFF0000)
    return bits[:count].view(np.float32)
