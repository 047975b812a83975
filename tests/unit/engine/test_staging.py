"""The ring of host buffers, on the CPU: what comes out, in which order, and what happens when a read fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jitmk.engine import staging
from jitmk.engine.staging import BUFFERS, Staging, batch_bytes
from jitmk.errors import CheckpointError
from jitmk.model.shard import Shard

CPU = torch.device("cpu")
TENSORS = {
    **{f"w{i}": torch.randn(40, 48).bfloat16() for i in range(3 * BUFFERS)},
    "f": torch.randn(33, 7),
    "h": torch.randn(5, 9).half(),
}


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    save_file(TENSORS, tmp_path / "x.safetensors")
    return Shard.open(tmp_path / "x.safetensors")


def readers() -> int:
    return sum(thread.name.startswith("jitmk-read") for thread in threading.enumerate())


@pytest.mark.parametrize("read_bytes", [7, 1 << 20])
def test_batches_come_out_as_they_were_stored(shard: Shard, read_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_READ_BYTES", read_bytes)
    names = [f"w{i}" for i in range(3 * BUFFERS)]
    with Staging(CPU, batch_bytes([shard.tensors["w0"].rows])) as stage:
        ahead = [stage.read([shard.tensors[name].rows]) for name in names[:BUFFERS]]
        for name, following in zip(names, [*names[BUFFERS:], *[None] * BUFFERS], strict=True):
            (values,) = stage.take(ahead.pop(0))
            assert torch.equal(values, TENSORS[name])
            if following is not None:
                ahead.append(stage.read([shard.tensors[following].rows]))
    assert readers() == 0


def test_a_batch_may_mix_types_and_pieces(shard: Shard) -> None:
    rows = [
        shard.tensors["h"].rows,
        shard.tensors["f"].rows.slice(3, 20),
        shard.tensors["w1"].rows.slice(1, 2),
        shard.tensors["f"].rows,
    ]
    with Staging(CPU, batch_bytes(rows)) as stage:
        for _ in range(BUFFERS + 1):
            first, second, third, fourth = stage.take(stage.read(rows))
            assert torch.equal(first, TENSORS["h"]) and first.dtype is torch.float16
            assert torch.equal(second, TENSORS["f"][3:20])
            assert torch.equal(third, TENSORS["w1"][1:2])
            assert torch.equal(fourth, TENSORS["f"])
        assert stage.take(stage.read([])) == []


def test_a_failed_read_is_raised_where_its_batch_is_taken(shard: Shard) -> None:
    with shard.path.open("r+b") as file:
        file.truncate(shard.tensors["w1"].rows.offset + 1)
    kept, lost = sorted(shard.tensors.values(), key=lambda t: t.offset)[0], shard.tensors["w1"]
    with Staging(CPU, batch_bytes([lost.rows, kept.rows])) as stage:
        good, bad = stage.read([kept.rows]), stage.read([lost.rows])
        assert torch.equal(stage.take(good)[0], TENSORS[kept.name])
        with pytest.raises(CheckpointError, match="before what its header describes"):
            stage.take(bad)
    assert readers() == 0
