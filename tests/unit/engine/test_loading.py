"""Weights that are read from files, slab by slab, are the weights that were saved."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jitmk.engine import loading
from jitmk.engine.arena import load_weights
from jitmk.engine.loading import matrix_slabs
from jitmk.engine.resident import load_resident
from jitmk.errors import CheckpointError
from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint
from jitmk.model.families import LoadedFamily, TensorRef, spec_from_config
from jitmk.model.families.base import InterleavedPairs
from jitmk.model.spec import Role, WeightKey, weight_shapes
from jitmk.program.weights import plan_weights
from tests.unit.model.configs import llama_config

CPU = torch.device("cpu")
FAMILY = spec_from_config(llama_config())
QKV, UP = "h.0.qkv", "h.0.up"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def unusual_family() -> LoadedFamily:
    """The model with the first layer's QKV in one tensor and its up projection stored transposed, and with pairs of the
    second layer's keys side by side."""
    refs, begin = dict(FAMILY.tensors), 0
    for role in (Role.Q, Role.K, Role.V):
        key = WeightKey(role, 0)
        rows = weight_shapes(FAMILY.spec)[key][0]
        refs[key] = TensorRef(QKV, (begin, begin + rows))
        begin += rows
    refs[WeightKey(Role.UP, 0)] = TensorRef(UP, transpose=True)
    refs[WeightKey(Role.K, 1)] = TensorRef("h.1.k", row_order=InterleavedPairs(FAMILY.spec.head_dim))
    return LoadedFamily(FAMILY.spec, refs)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    """Tensors of all types that jitmk reads, side by side in one matrix, and not all of them as rows."""
    plain = RandomCheckpoint(FAMILY.spec, dtype=torch.float32)
    family, tensors = unusual_family(), {}
    for i, (key, ref) in enumerate(sorted(family.tensors.items(), key=lambda item: item[1].name)):
        if ref.rows is None:
            values = plain.tensor(key).t() if ref.transpose else plain.tensor(key)
            tensors[ref.name] = values.to(DTYPES[i % len(DTYPES)]).contiguous()
    tensors[QKV] = torch.cat([plain.tensor(WeightKey(role, 0)) for role in (Role.Q, Role.K, Role.V)])
    save_file(tensors, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path, family) as checkpoint:
        yield checkpoint


@pytest.mark.parametrize("slab", [1, 9_000, 1 << 26])
def test_files_and_tensors_give_the_same_weights(
    checkpoint: Checkpoint, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_weights(FAMILY.spec)
    monkeypatch.setattr(loading, "_SLAB_BYTES", slab)
    read = load_weights(plan, checkpoint, CPU), load_resident(plan, checkpoint, CPU)
    monkeypatch.setattr(Checkpoint, "stored_rows", lambda self, key: None)
    whole = load_weights(plan, checkpoint, CPU)
    assert torch.equal(read[0].weights, whole.weights)
    assert torch.equal(read[0].constants, whole.constants)
    for name in plan.matrices:
        assert torch.equal(read[1].matrix(name), whole.matrix(name))
    expected = checkpoint.tensor(WeightKey(Role.DOWN, 1)).bfloat16().float()
    assert torch.equal(whole.matrix("layers.1.down"), expected)


def test_only_what_does_not_lie_in_rows_is_taken_whole(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = Checkpoint.tensor

    def tensor(self: Checkpoint, key: WeightKey) -> torch.Tensor:
        asked.append(key)
        return original(self, key)

    monkeypatch.setattr(Checkpoint, "tensor", tensor)
    load_weights(plan_weights(FAMILY.spec), checkpoint, CPU)
    matrices = [key for key in asked if len(weight_shapes(FAMILY.spec)[key]) == 2]
    assert matrices == [WeightKey(Role.UP, 0), WeightKey(Role.K, 1)]


def test_a_file_that_is_cut_while_it_is_read(checkpoint: Checkpoint) -> None:
    stored = checkpoint.stored_rows(WeightKey(Role.Q, 1))
    assert stored is not None
    with stored.shard.path.open("r+b") as file:
        file.truncate(stored.offset + 5)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends at byte"):
        load_resident(plan_weights(FAMILY.spec), checkpoint, CPU)


def test_slabs_may_be_left_alone(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_SLAB_BYTES", 1)
    with closing(matrix_slabs(checkpoint, plan_weights(FAMILY.spec).matrices.values(), CPU)) as slabs:
        matrix, begin, rows = next(slabs)
        assert (begin, rows.shape) == (0, (8, matrix.layout.columns))
    assert not any(thread.name.startswith("jitmk-read") for thread in threading.enumerate())
