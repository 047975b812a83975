"""From checkpoint tensors to the matrices and vectors of a WeightPlan, a slab of rows at a time."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from tqdm import tqdm

from jitmk.engine.staging import BUFFERS, Batch, Staging, batch_bytes
from jitmk.errors import CheckpointError
from jitmk.model.checkpoint import WeightSource
from jitmk.model.shard import StoredRows
from jitmk.model.spec import WeightKey, weight_shapes
from jitmk.program.packing import UNIT_ROWS
from jitmk.program.weights import Join, Matrix, Vector

_SLAB_BYTES = 32 << 20
"""Bytes of a matrix, as it is stored, that are read and packed at a time."""


def progress_bar(title: str, total: int, shown: bool) -> tqdm[None]:
    """A bar that counts bytes, on stderr; it appears when the work has taken a second."""
    return tqdm(
        desc=title, total=total, unit="B", unit_scale=True, delay=1.0, leave=False, disable=None if shown else True
    )


@contextmanager
def note_if_slow(text: str, shown: bool) -> Iterator[None]:
    """Prints a line on stderr once what is inside has taken a second."""
    timer = threading.Timer(1.0, lambda: print(f"jitmk: {text} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    if shown:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def matrix_slabs(
    source: WeightSource, matrices: Collection[Matrix], device: torch.device
) -> Generator[tuple[Matrix, int, torch.Tensor], None, None]:
    """The rows of matrices, from top to bottom. What lies in files is read ahead while the caller works.

    Close the generator (`contextlib.closing`) where it may not be run to its end.

    Yields:
        (matrix, first row, bf16 [rows, columns] on `device`); first rows are multiples of 8. The rows may be
        overwritten once the next are asked for.

    Raises:
        CheckpointError: a file cannot be read, or a value is not finite in bf16.
    """
    largest = max((batch_bytes(slab.stored) for slab in _slabs(source, matrices)), default=0)
    with Staging(device, largest) as staging:
        ahead: deque[tuple[_Slab, Batch]] = deque()
        for slab in chain(_slabs(source, matrices), [None] * BUFFERS):
            if len(ahead) == BUFFERS or (slab is None and ahead):
                ready, batch = ahead.popleft()
                yield ready.matrix, ready.begin, _join(ready, iter(staging.take(batch)), device)
            if slab is not None:
                ahead.append((slab, staging.read(slab.stored)))


def load_vector(source: WeightSource, vector: Vector, device: torch.device) -> torch.Tensor:
    """A constant vector, fp32 [values] on `device`, its addend added.

    Raises:
        CheckpointError: a value is not finite.
    """
    parts = [_finite(_small_tensor(source, key).to(device, torch.float32), key) for key in vector.keys]
    if vector.addend:
        parts = [part + vector.addend for part in parts]
    if vector.join is Join.INTERLEAVE:
        return torch.stack(parts, dim=1).flatten()
    return torch.cat(parts)


def _small_tensor(source: WeightSource, key: WeightKey) -> torch.Tensor:
    """A vector, read rather than mapped: a file that is cut meanwhile is an error then, not the end of the process."""
    stored = source.stored_rows(key)
    if stored is None:
        return source.tensor(key).flatten()
    raw = bytearray(stored.count * stored.row_bytes)
    stored.shard.read_into(memoryview(raw), stored.offset)
    return torch.frombuffer(raw, dtype=stored.dtype)


class _Part:
    """A tensor that a matrix is made of: read from its file row by row where it lies so, else taken as a whole."""

    def __init__(self, source: WeightSource, key: WeightKey) -> None:
        self.key = key
        self.rows = weight_shapes(source.spec)[key][0]
        self.stored = source.stored_rows(key)
        self._source = source

    @cached_property
    def whole(self) -> torch.Tensor:
        """The tensor; kept as long as there are slabs that need it."""
        return self._source.tensor(self.key)


@dataclass(frozen=True)
class _Piece:
    """Rows [begin, end) of a part."""

    part: _Part
    begin: int
    end: int


@dataclass(frozen=True)
class _Slab:
    """Rows of a matrix from `begin` on, and what they are made of."""

    matrix: Matrix
    begin: int
    pieces: tuple[_Piece, ...]

    @property
    def stored(self) -> tuple[StoredRows, ...]:
        """The pieces that are read from files."""
        return tuple(
            piece.part.stored.slice(piece.begin, piece.end) for piece in self.pieces if piece.part.stored is not None
        )


def _slabs(source: WeightSource, matrices: Collection[Matrix]) -> Iterator[_Slab]:
    """Matrices in slabs of `_SLAB_BYTES`, as their rows are stored."""
    for matrix in matrices:
        parts = [_Part(source, key) for key in matrix.keys]
        rows, columns = matrix.layout.rows, matrix.layout.columns
        row_bytes = max([2 * columns, *(part.stored.row_bytes for part in parts if part.stored is not None)])
        step = UNIT_ROWS * len(parts)
        slab = max(step, _SLAB_BYTES // row_bytes // step * step)
        for begin in range(0, rows, slab):
            yield _Slab(matrix, begin, tuple(_pieces(matrix, parts, begin, min(rows, begin + slab))))


def _pieces(matrix: Matrix, parts: list[_Part], begin: int, end: int) -> Iterator[_Piece]:
    """Which rows of which tensors make up rows [begin, end) of the matrix."""
    if matrix.join is Join.INTERLEAVE:
        for part in parts:
            yield _Piece(part, begin // len(parts), end // len(parts))
        return
    top = 0
    for part in parts:
        first, last = max(begin - top, 0), min(end - top, part.rows)
        if first < last:
            yield _Piece(part, first, last)
        top += part.rows


def _join(slab: _Slab, read: Iterator[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The rows of a slab; `read` has those that came from files, in order."""
    rows = []
    for piece in slab.pieces:
        part = piece.part
        values = part.whole[piece.begin : piece.end].to(device) if part.stored is None else next(read)
        rows.append(_to_bf16(values, part.key))
    if slab.matrix.join is Join.INTERLEAVE:
        return torch.stack(rows, dim=1).flatten(0, 1)
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _to_bf16(tensor: torch.Tensor, key: WeightKey) -> torch.Tensor:
    """Rounds to bf16; what is bf16 already is taken as it is."""
    if tensor.dtype is torch.bfloat16:
        return tensor
    return _finite(tensor.to(torch.bfloat16), key)


def _finite(tensor: torch.Tensor, key: WeightKey) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(
            f"the checkpoint's {key} holds NaN, infinity, or a value past the range of bf16 (3.4e38); jitmk runs "
            "finite weights only. Repair the checkpoint, or scale the weights"
        )
    return tensor
