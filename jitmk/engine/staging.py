"""Between files and a device: threads read ahead into a few host buffers while the device takes what came before."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import torch

from jitmk.cuda.driver import api, check
from jitmk.model.shard import StoredRows
from jitmk.program.packing import ceil_div

BUFFERS = 4
"""One is uploaded from, one waits for its turn, two are read into."""

_READERS = 8
"""Threads. One copies some 8 GB/s out of the page cache, a fifth of what the bus to an H200 takes."""

_READ_BYTES = 4 << 20
"""Bytes of one call to read."""

_ALIGNMENT = 256


@dataclass(frozen=True)
class Batch:
    """Rows that are being read into a buffer: each where it will lie in it, and the calls that are under way."""

    slot: int
    rows: tuple[StoredRows, ...]
    offsets: tuple[int, ...]
    nbytes: int
    reads: tuple[Future[None], ...]


def batch_bytes(rows: Sequence[StoredRows]) -> int:
    """Bytes of a buffer that these rows take."""
    return sum(_padded(part) for part in rows)


class Staging:
    """A ring of host buffers; pinned, so that the copies to a GPU are asynchronous and at the full speed of the bus.

    Use it as a context manager: it ends its threads, waits for copies that are under way, and frees the buffers.

    Args:
        device: where the rows go.
        buffer_bytes: the most bytes of a batch.

    Raises:
        DeviceError: the buffers cannot be pinned.
    """

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        self._device = device
        self._stride = ceil_div(max(buffer_bytes, 1), _ALIGNMENT) * _ALIGNMENT
        # Not out of torch's pool, which keeps pinned memory for good.
        self._memory = mmap.mmap(-1, self._stride * BUFFERS)
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._uploads: list[torch.cuda.Event | None] = [None] * BUFFERS
        self._batches = 0
        if device.type == "cuda":
            with torch.cuda.device(device):
                pinned = api().cuMemHostRegister(self._bytes.data_ptr(), self._bytes.numel(), 0)
            check(pinned, "pinning host memory to load weights through")
        self._pool = ThreadPoolExecutor(min(_READERS, len(os.sched_getaffinity(0))), "jitmk-read")

    def read(self, rows: Sequence[StoredRows]) -> Batch:
        """Begins to read rows into the next buffer, once the device has what was in it before.

        On a CPU what `take` gave out of that buffer, `BUFFERS` calls ago, is overwritten.
        """
        slot, self._batches = self._batches % BUFFERS, self._batches + 1
        upload = self._uploads[slot]
        if upload is not None:
            upload.synchronize()
        at, offsets, reads = slot * self._stride, [], []
        view = memoryview(self._memory)
        for part in rows:
            size = part.count * part.row_bytes
            offsets.append(at)
            for begin in range(0, size, _READ_BYTES):
                piece = view[at + begin : at + min(begin + _READ_BYTES, size)]
                reads.append(self._pool.submit(part.shard.read_into, piece, part.offset + begin))
            at += _padded(part)
        return Batch(slot, tuple(rows), tuple(offsets), at - slot * self._stride, tuple(reads))

    def take(self, batch: Batch) -> list[torch.Tensor]:
        """The rows of a batch on the device, each of its own type, [count, values of a row].

        On a GPU the copy runs asynchronously on the current stream. On a CPU these are views of the buffer.

        Raises:
            CheckpointError: a file could not be read.
        """
        for read in batch.reads:
            read.result()
        first = batch.slot * self._stride
        on_device = self._bytes[first : first + batch.nbytes].to(self._device, non_blocking=True)
        if self._device.type == "cuda":
            self._uploads[batch.slot] = torch.cuda.current_stream(self._device).record_event()
        parts = []
        for part, offset in zip(batch.rows, batch.offsets, strict=True):
            raw = on_device[offset - first : offset - first + part.count * part.row_bytes]
            parts.append(raw.view(part.dtype).view(part.count, part.row_bytes // part.dtype.itemsize))
        return parts

    def close(self) -> None:
        """Ends threads and copies, and frees the buffers."""
        self._pool.shutdown(cancel_futures=True)
        for upload in self._uploads:
            if upload is not None:
                upload.synchronize()
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                check(api().cuMemHostUnregister(self._bytes.data_ptr()), "giving back pinned memory")

    def __enter__(self) -> Staging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _padded(part: StoredRows) -> int:
    return ceil_div(part.count * part.row_bytes, _ALIGNMENT) * _ALIGNMENT
