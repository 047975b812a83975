"""Weights that go through pinned buffers to the GPU arrive as they do on a CPU, where nothing is asynchronous."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jitmk.cuda.device import Device
from jitmk.engine import loading
from jitmk.engine.arena import load_weights
from jitmk.engine.staging import BUFFERS
from jitmk.errors import CheckpointError
from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint
from jitmk.model.families import spec_from_config
from jitmk.model.spec import Role, WeightKey
from jitmk.program.weights import plan_weights
from tests.unit.model.configs import llama_config

pytestmark = pytest.mark.gpu

FAMILY = spec_from_config(
    llama_config(vocab_size=5003, hidden_size=1024, intermediate_size=2816, num_attention_heads=16, head_dim=64)
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("slab", [1 << 16, 1 << 20, 1 << 26])
def test_the_arena_is_the_same(
    gpu: Device, tmp_path: Path, dtype: torch.dtype, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, plan = RandomCheckpoint(FAMILY.spec, dtype=dtype), plan_weights(FAMILY.spec)
    save_file({ref.name: source.tensor(key) for key, ref in FAMILY.tensors.items()}, tmp_path / "model.safetensors")
    expected = load_weights(plan, source, torch.device("cpu"), progress=False)
    monkeypatch.setattr(loading, "_SLAB_BYTES", slab)
    with Checkpoint.open(tmp_path, FAMILY) as checkpoint:
        arena = load_weights(plan, checkpoint, torch.device("cuda", gpu.index), progress=False)
    assert torch.equal(arena.weights.cpu(), expected.weights)
    assert torch.equal(arena.constants.cpu(), expected.constants)


def test_neither_host_nor_gpu_holds_a_second_copy(gpu: Device, tmp_path: Path) -> None:
    source, plan = RandomCheckpoint(FAMILY.spec), plan_weights(FAMILY.spec)
    save_file({ref.name: source.tensor(key) for key, ref in FAMILY.tensors.items()}, tmp_path / "model.safetensors")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with pytest.MonkeyPatch.context() as patch, Checkpoint.open(tmp_path, FAMILY) as checkpoint:
        patch.setattr(loading, "_SLAB_BYTES", 1 << 18)
        arena = load_weights(plan, checkpoint, torch.device("cuda", gpu.index), progress=False)
    extra = torch.cuda.max_memory_allocated() - before - arena.weights.nbytes - arena.constants.nbytes
    assert extra < 8 << 20 < arena.weights.nbytes


def test_a_file_that_is_cut_while_it_is_read(gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, plan = RandomCheckpoint(FAMILY.spec), plan_weights(FAMILY.spec)
    save_file({ref.name: source.tensor(key) for key, ref in FAMILY.tensors.items()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(loading, "_SLAB_BYTES", 1 << 16)
    device = torch.device("cuda", gpu.index)
    with Checkpoint.open(tmp_path, FAMILY) as checkpoint:
        stored = checkpoint.stored_rows(WeightKey(Role.DOWN, 1))
        assert stored is not None and stored.count * stored.row_bytes > BUFFERS << 16
        with stored.shard.path.open("r+b") as file:
            file.truncate(stored.offset + stored.count * stored.row_bytes // 2)
        with pytest.raises(CheckpointError, match="ends at byte"):
            load_weights(plan, checkpoint, device, progress=False)
    # What went wrong leaves nothing pinned and nothing pending.
    expected = load_weights(plan, source, torch.device("cpu"), progress=False)
    assert torch.equal(load_weights(plan, source, device, progress=False).weights.cpu(), expected.weights)
