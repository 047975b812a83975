from __future__ import annotations

import torch

from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import Role, WeightKey
from jitmk.reference.weights import ReferenceWeights
from tests.support.features import feature_spec
from tests.support.tiny import tiny_spec


def test_tensors_are_joined_and_matrices_rounded() -> None:
    spec = tiny_spec(mlp_bias=True)
    source = RandomCheckpoint(spec, dtype=torch.float32)
    weights = ReferenceWeights(spec, source)
    q, k, v = (source.tensor(WeightKey(role, 1)) for role in (Role.Q, Role.K, Role.V))
    assert torch.equal(weights.matrix("layers.1.qkv"), torch.cat((q, k, v)).bfloat16().float())
    gate_up = weights.matrix("layers.0.gate_up")
    assert torch.equal(gate_up[0::2], source.tensor(WeightKey(Role.GATE, 0)).bfloat16().float())
    assert torch.equal(gate_up[1::2], source.tensor(WeightKey(Role.UP, 0)).bfloat16().float())
    bias = weights.vector("layers.0.gate_up_bias")
    assert torch.equal(bias[1::2], source.tensor(WeightKey(Role.UP_BIAS, 0))), "vectors keep fp32"
    assert weights.matrix("layers.1.qkv") is weights.matrix("layers.1.qkv"), "made once"


def test_embeddings_tied_and_untied() -> None:
    ids = torch.tensor([3, 0, 3])
    for tied in (True, False):
        spec = tiny_spec(tied_embeddings=tied)
        source = RandomCheckpoint(spec)
        rows = ReferenceWeights(spec, source).embedding(ids)
        assert torch.equal(rows, source.tensor(WeightKey(Role.EMBEDDING)).float()[ids])


def test_norms_are_stored_without_their_offset() -> None:
    spec = feature_spec("sandwich")
    source = RandomCheckpoint(spec)
    stored = source.tensor(WeightKey(Role.MLP_POST_NORM, 1)).float()
    assert torch.equal(ReferenceWeights(spec, source).vector("layers.1.mlp_post_norm"), stored + 1)


def test_weights_of_heads_are_flattened() -> None:
    spec = feature_spec("parallel")
    source = RandomCheckpoint(spec)
    stored = source.tensor(WeightKey(Role.K_NORM, 0)).float()
    assert stored.shape == (2, 64)
    assert torch.equal(ReferenceWeights(spec, source).vector("layers.0.k_norm"), stored.flatten())


def test_positions() -> None:
    spec = feature_spec("learned-positions")
    source = RandomCheckpoint(spec)
    rows = ReferenceWeights(spec, source).position_embedding(torch.tensor([7, 0]))
    assert torch.equal(rows, source.tensor(WeightKey(Role.POSITION_EMBEDDING)).float()[[7, 0]])
