"""One safetensors file: checked when it is opened, its tensors mapped or read straight to where they are wanted.

Source: the format's description, https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from jitmk.errors import CheckpointError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""The types that jitmk reads, by their names in a header."""


@dataclass(frozen=True)
class StoredRows:
    """Rows that lie one behind the other in a file.

    Attributes:
        shard: the file.
        offset: of the first row, in bytes from the beginning of the file.
        count: rows.
        row_bytes: size of each.
        dtype: of the values.
    """

    shard: Shard
    offset: int
    count: int
    row_bytes: int
    dtype: torch.dtype

    def slice(self, begin: int, end: int) -> StoredRows:
        """Some of the rows."""
        return replace(self, offset=self.offset + begin * self.row_bytes, count=end - begin)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by its file's header: `dtype` as named there, `offset` in bytes from the beginning of the file."""

    shard: Shard
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def rows(self) -> StoredRows:
        """All rows of a tensor of one of `DTYPES`."""
        dtype = DTYPES[self.dtype]
        return StoredRows(self.shard, self.offset, self.shape[0], math.prod(self.shape[1:]) * dtype.itemsize, dtype)


class Shard:
    """An open file. Make one with `open`; `close` it.

    Attributes:
        path: the file; tensors: what is in it, by name.
    """

    def __init__(self, path: Path, descriptor: int, mapping: Any) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        self._descriptor = descriptor
        self._mapping = mapping

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Opens a file, and has safetensors check that its header is sound and agrees with its size.

        Raises:
            CheckpointError: it is truncated, damaged, not safetensors, or cannot be read.
        """
        try:
            mapping = safe_open(path, framework="pt", device="cpu")
            shard = cls(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), mapping)
        except SafetensorError as error:
            size = path.stat().st_size
            raise CheckpointError(
                f"{path} ({size} bytes) is truncated, damaged, or not safetensors: {error}; download it again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        try:
            shard._read_header()
        except CheckpointError:
            shard.close()
            raise
        return shard

    def mapped(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, mapped into memory: a page is read when it is first touched. Do not write to it."""
        tensor: torch.Tensor = self._mapping.get_tensor(name)
        return tensor

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills a buffer with the bytes of the file from `offset` on. Threads may do so side by side.

        Raises:
            CheckpointError: the file ends before that, was closed, or cannot be read.
        """
        try:
            while len(buffer) > 0:
                count = os.preadv(self._descriptor, [buffer], offset)
                if count == 0:
                    raise CheckpointError(
                        f"{self.path} ends at byte {offset}, before what its header describes: it was cut while it "
                        "was being read; download it again"
                    )
                buffer, offset = buffer[count:], offset + count
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read at byte {offset}: {error}") from error

    def close(self) -> None:
        """Closes the file. Tensors that were handed out stay valid, since they hold their mapping."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            self._mapping.__exit__(None, None, None)

    def _read_header(self) -> None:
        """Eight bytes with the size of the header, the header in JSON, then the tensors. safetensors has checked it."""
        size = bytearray(8)
        self.read_into(memoryview(size), 0)
        header = bytearray(int.from_bytes(size, "little"))
        self.read_into(memoryview(header), len(size))
        data = len(size) + len(header)
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                begin = data + entry["data_offsets"][0]
                self.tensors[name] = StoredTensor(self, name, tuple(entry["shape"]), entry["dtype"], begin)
