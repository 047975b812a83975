from __future__ import annotations

from typing import Any

import pytest

from jitmk.model.spec import Role, WeightKey, weight_shapes
from jitmk.program.packing import GRAIN_BYTES
from jitmk.program.weights import Join, plan_weights
from tests.support.features import FEATURES, feature_spec
from tests.support.tiny import tiny_spec

CHANGES: list[dict[str, Any]] = [
    {},
    {"tied_embeddings": True},
    {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    {"qkv_bias": True, "num_layers": 3, "intermediate_size": 112, "vocab_size": 7},
    *FEATURES.values(),
]


@pytest.mark.parametrize("changes", CHANGES)
def test_every_tensor_has_one_place(changes: dict[str, Any]) -> None:
    spec = tiny_spec(**changes)
    plan = plan_weights(spec)
    keys = [key for matrix in plan.matrices.values() for key in matrix.keys]
    keys += [key for vector in plan.vectors.values() for key in vector.keys]
    assert sorted(map(str, keys)) == sorted(map(str, weight_shapes(spec)))


@pytest.mark.parametrize("changes", CHANGES)
def test_nothing_overlaps_and_everything_is_aligned(changes: dict[str, Any]) -> None:
    plan = plan_weights(tiny_spec(**changes))
    end = 0
    for matrix in sorted(plan.matrices.values(), key=lambda m: m.offset):
        assert matrix.offset >= end and matrix.offset % GRAIN_BYTES == 0
        assert matrix.grain * GRAIN_BYTES == matrix.offset
        end = matrix.offset + matrix.nbytes
    assert end <= plan.arena_bytes
    end = 0
    for vector in sorted(plan.vectors.values(), key=lambda v: v.offset):
        assert vector.offset >= end and vector.offset % 8 == 0
        end = vector.offset + vector.padded_values
    assert end == plan.constant_values


def test_names_and_joins() -> None:
    spec = tiny_spec(mlp_bias=True)
    plan = plan_weights(spec)
    qkv = plan.matrices["layers.1.qkv"]
    assert qkv.keys == tuple(WeightKey(role, 1) for role in (Role.Q, Role.K, Role.V)) and qkv.join is Join.STACK
    assert (qkv.layout.rows, qkv.layout.columns) == (spec.qkv_rows, spec.hidden_size)
    gate_up = plan.matrices["layers.0.gate_up"]
    assert gate_up.join is Join.INTERLEAVE and gate_up.layout.rows == 2 * spec.intermediate_size
    assert plan.vectors["layers.0.gate_up_bias"].join is Join.INTERLEAVE
    assert not plan.matrices["embedding"].packed and plan.matrices["lm_head"].packed


def test_tied_embeddings_are_stored_once() -> None:
    plan = plan_weights(tiny_spec(tied_embeddings=True))
    assert "embedding" not in plan.matrices
    assert plan.matrices["lm_head"].keys == (WeightKey(Role.EMBEDDING),)


def test_vectors_of_norms() -> None:
    plan = plan_weights(feature_spec("two-ropes"))
    assert plan.vectors["layers.2.q_norm"].addend == 1.0 and plan.vectors["final_norm"].addend == 0.0
    assert plan.vectors["layers.0.q_norm"].values == 64
    sandwich = plan_weights(feature_spec("sandwich")).vectors
    names = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
    assert all(sandwich[f"layers.1.{name}"].addend == 1.0 for name in names)
    weights_of_heads = plan_weights(feature_spec("parallel")).vectors
    assert weights_of_heads["layers.0.q_norm"].values == 4 * 64, "[heads, head_dim], flattened"
    assert "layers.0.mlp_norm" not in weights_of_heads
    layer_norm = plan_weights(feature_spec("learned-positions")).vectors
    assert {"final_norm_bias", "layers.0.attention_norm_bias", "layers.1.mlp_norm_bias"} <= set(layer_norm)


def test_a_plain_mlp_and_learned_positions() -> None:
    spec = feature_spec("learned-positions")
    plan = plan_weights(spec)
    assert plan.matrices["layers.0.up"].keys == (WeightKey(Role.UP, 0),) and "layers.0.gate_up" not in plan.matrices
    assert plan.vectors["layers.0.up_bias"].values == spec.intermediate_size
    positions = plan.matrices["position_embedding"]
    assert not positions.packed and positions.layout.rows == spec.max_positions
