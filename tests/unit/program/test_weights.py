from __future__ import annotations

from typing import Any

import pytest

from jitmk.model.spec import Role, WeightKey, weight_shapes
from jitmk.program.packing import GRAIN_BYTES
from jitmk.program.weights import Join, plan_weights
from tests.support.tiny import tiny_spec

CHANGES: list[dict[str, Any]] = [
    {},
    {"tied_embeddings": True},
    {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    {"qkv_bias": True, "num_layers": 3, "intermediate_size": 112, "vocab_size": 7},
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
