"""ModelSpec: which tensors each part of a model implies."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families import spec_from_config
from jitmk.model.spec import (
    ModelSpec,
    NormKind,
    NormSpec,
    QkNorm,
    QkNormScope,
    Role,
    RopeKind,
    RopeSpec,
    WeightKey,
    weight_offset,
    weight_shapes,
)
from tests.unit.model.configs import llama_config

LLAMA = spec_from_config(llama_config()).spec  # hidden 128, intermediate 192, 2 heads of 64, 1 key/value head
OF_LLAMA = {Role.ATTENTION_NORM, Role.Q, Role.K, Role.V, Role.O, Role.MLP_NORM, Role.GATE, Role.UP, Role.DOWN}
LAYER_NORM = NormSpec(NormKind.LAYER, 1e-5, bias=True)


def layer_roles(spec: ModelSpec) -> set[Role]:
    return {key.role for key in weight_shapes(spec) if key.layer == 1}


def added(spec: ModelSpec) -> set[Role]:
    """Roles of a layer that Llama's does not have."""
    return layer_roles(spec) - OF_LLAMA


def missing(spec: ModelSpec) -> set[Role]:
    return OF_LLAMA - layer_roles(spec)


def test_a_layer_has_the_norms_that_the_spec_places() -> None:
    assert layer_roles(LLAMA) == OF_LLAMA
    sandwich = replace(LLAMA, post_norm=True)
    assert added(sandwich) == {Role.ATTENTION_POST_NORM, Role.MLP_POST_NORM} and not missing(sandwich)
    assert missing(replace(sandwich, pre_norm=False)) == {Role.ATTENTION_NORM, Role.MLP_NORM}
    assert missing(replace(LLAMA, parallel=True)) == {Role.MLP_NORM}
    assert added(replace(LLAMA, norm=LAYER_NORM)) == {Role.ATTENTION_NORM_BIAS, Role.MLP_NORM_BIAS}
    assert added(replace(LLAMA, norm=LAYER_NORM, parallel=True)) == {Role.ATTENTION_NORM_BIAS}
    assert added(replace(sandwich, norm=LAYER_NORM)) >= {Role.ATTENTION_POST_NORM_BIAS, Role.MLP_POST_NORM_BIAS}


def test_norms_of_queries_and_keys_have_the_shape_of_their_scope() -> None:
    shapes = {}
    for scope in QkNormScope:
        of_spec = weight_shapes(replace(LLAMA, qk_norm=QkNorm(NormKind.RMS, 1e-6, scope)))
        shapes[scope] = of_spec[WeightKey(Role.Q_NORM, 0)], of_spec[WeightKey(Role.K_NORM, 0)]
    assert shapes == {
        QkNormScope.HEAD: ((64,), (64,)),
        QkNormScope.HEAD_WEIGHTS: ((2, 64), (1, 64)),
        QkNormScope.PROJECTION: ((128,), (64,)),
    }


def test_an_mlp_without_a_gate_has_none_and_no_bias_of_it() -> None:
    plain = replace(LLAMA, gated=False)
    assert missing(plain) == {Role.GATE}
    assert added(replace(plain, mlp_bias=True)) == {Role.UP_BIAS, Role.DOWN_BIAS}
    assert added(replace(LLAMA, mlp_bias=True)) == {Role.GATE_BIAS, Role.UP_BIAS, Role.DOWN_BIAS}


def test_tensors_outside_of_layers() -> None:
    spec = replace(LLAMA, learned_positions=True, norm=LAYER_NORM, max_positions=77)
    shapes = {key.role: shape for key, shape in weight_shapes(spec).items() if key.layer is None}
    assert shapes == {
        Role.EMBEDDING: (100, 128),
        Role.POSITION_EMBEDDING: (77, 128),
        Role.FINAL_NORM: (128,),
        Role.FINAL_NORM_BIAS: (128,),
        Role.LM_HEAD: (100, 128),
    }
    assert WeightKey(Role.LM_HEAD) not in weight_shapes(replace(spec, tied_embeddings=True))


def test_the_number_of_weights_is_that_of_all_shapes() -> None:
    layer = 128 * (128 + 2 * 64 + 128) + 3 * 128 * 192 + 2 * 128
    assert LLAMA.parameters == 2 * layer + 2 * 100 * 128 + 128
    assert replace(LLAMA, qkv_bias=True).parameters == LLAMA.parameters + 2 * LLAMA.qkv_rows


def test_offsets_belong_to_norm_weights_only() -> None:
    qk_norm = QkNorm(NormKind.RMS, 1e-6, QkNormScope.HEAD, offset=0.5)
    spec = replace(LLAMA, norm=NormSpec(NormKind.RMS, 1e-6, offset=1.0), qk_norm=qk_norm, post_norm=True)
    offsets = {key.role: weight_offset(spec, key.role) for key in weight_shapes(spec)}
    ones = {role for role, offset in offsets.items() if offset == 1.0}
    assert ones == {
        Role.ATTENTION_NORM,
        Role.ATTENTION_POST_NORM,
        Role.MLP_NORM,
        Role.MLP_POST_NORM,
        Role.FINAL_NORM,
    }
    assert {role for role, offset in offsets.items() if offset == 0.5} == {Role.Q_NORM, Role.K_NORM}
    assert weight_offset(LLAMA, Role.ATTENTION_NORM) == 0.0 and weight_offset(LLAMA, Role.Q_NORM) == 0.0


def test_the_widest_rotation_counts() -> None:
    ropes = tuple(RopeSpec(RopeKind.DEFAULT, 1e4, dims) for dims in (32, 48))
    assert replace(LLAMA, ropes=ropes).rotary_dim == 48
    assert replace(LLAMA, ropes=()).rotary_dim == 0
