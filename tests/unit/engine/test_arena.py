from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jitmk
from jitmk.engine import loading, memory
from jitmk.engine.arena import load_weights
from jitmk.engine.resident import load_resident
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.shard import StoredRows
from jitmk.model.spec import ModelSpec, Role, WeightKey
from jitmk.program.packing import unpack
from jitmk.program.weights import plan_weights
from jitmk.reference.weights import ReferenceWeights
from tests.support.features import FEATURES, feature_spec
from tests.support.tiny import tiny_spec

CPU = torch.device("cpu")


@dataclass
class Edited:
    """A `WeightSource` with some tensors replaced; counts what was asked for."""

    inner: RandomCheckpoint
    replaced: dict[WeightKey, torch.Tensor] = field(default_factory=dict)
    asked: int = 0

    @property
    def spec(self) -> ModelSpec:
        return self.inner.spec

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def tensor(self, key: WeightKey) -> torch.Tensor:
        self.asked += 1
        return self.replaced.get(key, self.inner.tensor(key))

    def stored_rows(self, key: WeightKey) -> StoredRows | None:
        return None

    def close(self) -> None:
        self.inner.close()


@settings(max_examples=15, deadline=None)
@given(
    hidden=st.integers(1, 40).map(lambda n: 16 * n),
    intermediate=st.integers(1, 40).map(lambda n: 16 * n),
    vocab=st.integers(9, 300),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)]),
    tied=st.booleans(),
    biases=st.booleans(),
    slab=st.sampled_from([1, 20_000, 1 << 26]),
)
def test_every_matrix_and_vector_comes_back(
    hidden: int, intermediate: int, vocab: int, heads: tuple[int, int], tied: bool, biases: bool, slab: int
) -> None:
    spec = tiny_spec(
        hidden_size=hidden,
        intermediate_size=intermediate,
        vocab_size=vocab,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        num_layers=1,
        tied_embeddings=tied,
        qkv_bias=biases,
        o_bias=biases,
        mlp_bias=biases,
    )
    source, plan = RandomCheckpoint(spec), plan_weights(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_SLAB_BYTES", slab)  # from one unit of rows at a time to all at once
        arena = load_weights(plan, source, CPU)
        resident = load_resident(plan, source, CPU)

    def tensor(role: Role, layer: int | None = 0) -> torch.Tensor:
        return source.tensor(WeightKey(role, layer)).float()

    embedding = tensor(Role.EMBEDDING, None)
    head = embedding if tied else tensor(Role.LM_HEAD, None)
    gate_up = torch.stack((tensor(Role.GATE), tensor(Role.UP)), dim=1).flatten(0, 1)
    ids = torch.tensor([0, vocab - 1, 3, 3, 8])
    for weights in (arena, resident):
        assert weights.compute_dtype is torch.float32
        assert torch.equal(weights.matrix("layers.0.qkv"), torch.cat([tensor(r) for r in (Role.Q, Role.K, Role.V)]))
        assert torch.equal(weights.matrix("layers.0.gate_up"), gate_up)
        assert torch.equal(weights.matrix("layers.0.o_proj"), tensor(Role.O))
        assert torch.equal(weights.matrix("layers.0.down"), tensor(Role.DOWN))
        assert torch.equal(weights.embedding(ids), embedding[ids])
        assert torch.equal(weights.head_rows(8, vocab), head[8:])
        assert torch.equal(weights.vector("layers.0.mlp_norm"), tensor(Role.MLP_NORM))
        if biases:
            interleaved = torch.stack((tensor(Role.GATE_BIAS), tensor(Role.UP_BIAS)), dim=1).flatten()
            assert torch.equal(weights.vector("layers.0.gate_up_bias"), interleaved)


def test_matrices_lie_where_the_plan_says() -> None:
    spec = tiny_spec()
    plan, source = plan_weights(spec), RandomCheckpoint(spec)
    arena = load_weights(plan, source, CPU)
    down = plan.matrices["layers.1.down"]
    stored = arena.weights[down.offset // 2 : (down.offset + down.nbytes) // 2]
    expected = source.tensor(WeightKey(Role.DOWN, 1))
    assert torch.equal(unpack(stored, down.layout.rows, down.layout.columns), expected)
    table = plan.matrices["embedding"]
    stored = arena.weights[table.offset // 2 : (table.offset + table.nbytes) // 2]
    assert torch.equal(stored.view(spec.vocab_size, -1), source.tensor(WeightKey(Role.EMBEDDING)))
    assert arena.weights.dtype is torch.bfloat16 and arena.weights.numel() * 2 == plan.arena_bytes
    assert arena.constants.dtype is torch.float32 and len(arena.constants) == plan.constant_values


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_are_rounded_to_bf16_and_vectors_are_not(dtype: torch.dtype) -> None:
    spec = tiny_spec()
    source = RandomCheckpoint(spec, dtype=dtype)
    arena = load_weights(plan_weights(spec), source, CPU)
    rounded = source.tensor(WeightKey(Role.O, 0)).to(torch.bfloat16).float()
    assert torch.equal(arena.matrix("layers.0.o_proj"), rounded)
    assert torch.equal(arena.vector("final_norm"), source.tensor(WeightKey(Role.FINAL_NORM)).float())


@pytest.mark.parametrize(
    ("role", "value"),
    [
        (Role.UP, 3.4e38),  # finite in fp32
        (Role.UP, float("inf")),
        (Role.UP, float("nan")),
        (Role.ATTENTION_NORM, float("inf")),
        (Role.ATTENTION_NORM, float("nan")),
    ],
)
def test_what_bf16_cannot_hold_is_refused_by_name(role: Role, value: float) -> None:
    spec = tiny_spec()
    key = WeightKey(role, 1)
    source = Edited(RandomCheckpoint(spec, dtype=torch.float32))
    tensor = source.tensor(key).clone()
    tensor.view(-1)[-1] = value
    source.replaced[key] = tensor
    with pytest.raises(jitmk.CheckpointError, match=f"layers.1.{role.value} holds"):
        load_weights(plan_weights(spec), source, CPU)


def test_what_does_not_fit_is_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec()
    monkeypatch.setattr(memory, "free_memory", lambda device: 100_000)
    for load in (load_weights, load_resident):
        source = Edited(RandomCheckpoint(spec))
        with pytest.raises(jitmk.DeviceMemoryError, match=r"weights [\d.]+ kB, KV cache 5 MB.* 100 kB are free"):
            load(plan_weights(spec), source, CPU, also_needed={"KV cache": 5_000_000})
        assert source.asked == 0


@pytest.mark.parametrize("name", FEATURES)
def test_every_part_of_a_model_is_loaded(name: str) -> None:
    """Offsets of norms, weights of heads, learned positions: as the reference has them from the checkpoint."""
    spec = feature_spec(name)
    plan, source = plan_weights(spec), RandomCheckpoint(spec)
    expected = ReferenceWeights(spec, source)
    for weights in (load_weights(plan, source, CPU), load_resident(plan, source, CPU)):
        for vector in plan.vectors:
            assert torch.equal(weights.vector(vector), expected.vector(vector)), vector
        for matrix in plan.matrices:
            assert torch.equal(weights.matrix(matrix), expected.matrix(matrix)), matrix
        if spec.learned_positions:
            positions = torch.tensor([3, 0, 255])
            assert torch.equal(weights.position_embedding(positions), expected.position_embedding(positions))
