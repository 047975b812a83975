"""From checkpoint tensors to the matrices and vectors of a WeightPlan, a slab of rows at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from jitmk.errors import CheckpointError
from jitmk.model.checkpoint import WeightSource
from jitmk.model.spec import WeightKey
from jitmk.program.packing import UNIT_ROWS
from jitmk.program.weights import Join, Matrix, Vector

_SLAB_BYTES = 64 << 20
"""Bytes of a matrix in bf16 that are on the device beside their final place."""


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


def matrix_slabs(source: WeightSource, matrix: Matrix, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows of a matrix from top to bottom.

    Yields:
        (first row, bf16 [rows, columns] on `device`); first rows are multiples of 8.

    Raises:
        CheckpointError: a value is not finite in bf16.
    """
    parts = [source.tensor(key) for key in matrix.keys]
    rows, columns = matrix.layout.rows, matrix.layout.columns
    step = UNIT_ROWS * len(parts)
    slab = max(step, _SLAB_BYTES // (2 * columns) // step * step)
    for begin in range(0, rows, slab):
        end = min(rows, begin + slab)
        pieces = [
            _to_bf16(part[first:last].to(device), key) for key, part, first, last in _pieces(matrix, parts, begin, end)
        ]
        if matrix.join is Join.INTERLEAVE:
            yield begin, torch.stack(pieces, dim=1).flatten(0, 1)
        else:
            yield begin, pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def load_vector(source: WeightSource, vector: Vector, device: torch.device) -> torch.Tensor:
    """A constant vector, fp32 [values] on `device`, its addend added.

    Raises:
        CheckpointError: a value is not finite.
    """
    parts = [_finite(source.tensor(key).to(device, torch.float32).flatten(), key) for key in vector.keys]
    if vector.addend:
        parts = [part + vector.addend for part in parts]
    if vector.join is Join.INTERLEAVE:
        return torch.stack(parts, dim=1).flatten()
    return torch.cat(parts)


def _pieces(
    matrix: Matrix, parts: list[torch.Tensor], begin: int, end: int
) -> Iterator[tuple[WeightKey, torch.Tensor, int, int]]:
    """Which rows of which tensors make up rows [begin, end) of the matrix."""
    if matrix.join is Join.INTERLEAVE:
        for key, part in zip(matrix.keys, parts, strict=True):
            yield key, part, begin // len(parts), end // len(parts)
        return
    top = 0
    for key, part in zip(matrix.keys, parts, strict=True):
        first, last = max(begin - top, 0), min(end - top, len(part))
        if first < last:
            yield key, part, first, last
        top += len(part)


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
