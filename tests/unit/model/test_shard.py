"""Reading straight from a safetensors file, and what may go wrong after its header was checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jitmk.errors import CheckpointError
from jitmk.model.shard import Shard, StoredRows

TENSORS = {
    "a": torch.arange(60, dtype=torch.float32).view(12, 5),
    "b": torch.randn(7, 3, 4).bfloat16(),
    "c": torch.randn(9).half(),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # Metadata sits between the tensors of a header.
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def read(rows: StoredRows) -> torch.Tensor:
    buffer = bytearray(rows.count * rows.row_bytes)
    rows.shard.read_into(memoryview(buffer), rows.offset)
    return torch.frombuffer(buffer, dtype=rows.dtype).view(rows.count, -1)


def test_rows_are_where_the_header_says(path: Path) -> None:
    shard = Shard.open(path)
    assert shard.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        rows = shard.tensors[name].rows
        assert torch.equal(read(rows), tensor.view(len(tensor), -1))
        assert torch.equal(read(rows.slice(2, 7)), tensor.view(len(tensor), -1)[2:7])
        assert torch.equal(read(rows.slice(1, 6).slice(2, 3)), tensor.view(len(tensor), -1)[3:4])
        assert torch.equal(shard.mapped(name), tensor)
    shard.close()


def test_a_file_that_was_cut_after_it_was_opened(path: Path) -> None:
    shard = Shard.open(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=rf"{path} ends at byte {path.stat().st_size}, before"):
        for tensor in shard.tensors.values():
            read(tensor.rows)
    shard.close()


def test_a_closed_file_is_not_read(path: Path) -> None:
    shard = Shard.open(path)
    rows, kept = shard.tensors["a"].rows, shard.mapped("a")
    shard.close()
    shard.close()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(rows)
    assert torch.equal(kept, TENSORS["a"])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Shard.open(tmp_path)
