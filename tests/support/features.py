"""Tiny models that between them have every part that a ModelSpec can have, and a strategy that draws any of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hypothesis import strategies as st

from jitmk.model.spec import Activation, LayerSpec, ModelSpec, NormKind, NormSpec, QkNorm, QkNormScope, RopeKind
from jitmk.program.fusion import Fusion
from tests.support.tiny import tiny_rope, tiny_spec

RMS, LAYER = NormKind.RMS, NormKind.LAYER
HEAD, HEAD_WEIGHTS, PROJECTION = QkNormScope.HEAD, QkNormScope.HEAD_WEIGHTS, QkNormScope.PROJECTION
TWO_ROPES = (tiny_rope(RopeKind.DEFAULT, 64), tiny_rope(RopeKind.LINEAR, 32))

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sandwich": {
        "norm": NormSpec(RMS, 1e-6, offset=1.0),
        "post_norm": True,
        "layers": (LayerSpec(window=7), LayerSpec()),
        "attention_scale": 0.1,
        "attention_soft_cap": 2.0,
        "logit_soft_cap": 3.0,
        "embedding_scale": 8.0,
        "activation": Activation.GELU_TANH,
        "tied_embeddings": True,
    },
    "two-ropes": {
        "post_norm": True,
        "qk_norm": QkNorm(RMS, 1e-6, HEAD, offset=1.0),
        "ropes": TWO_ROPES,
        "layers": (LayerSpec(window=20, rope=1), LayerSpec(rope=0), LayerSpec(window=3, rope=None)),
        "num_layers": 3,
    },
    "post-norm": {"pre_norm": False, "post_norm": True, "qk_norm": QkNorm(RMS, 1e-6, PROJECTION)},
    "learned-positions": {
        "norm": NormSpec(LAYER, 1e-5, bias=True),
        "rope": None,
        "learned_positions": True,
        "activation": Activation.GELU_TANH,
        "gated": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "num_kv_heads": 4,
        "tied_embeddings": True,
    },
    "layer-norm": {
        "norm": NormSpec(LAYER, 1e-5, bias=True),
        "layers": (LayerSpec(window=17),) * 2,
        "activation": Activation.GELU,
        "gated": False,
        "num_heads": 12,
        "num_kv_heads": 1,
    },
    "partial-rope": {"rope": RopeKind.LONGROPE, "rotary_dim": 48},
    "parallel": {
        "norm": NormSpec(LAYER, 1e-5),
        "parallel": True,
        "qk_norm": QkNorm(LAYER, 1e-5, HEAD_WEIGHTS),
        "logit_scale": 0.25,
        "residual_scale": 0.5,
    },
    "multipliers": {
        "embedding_scale": 4.0,
        "residual_scale": 0.25,
        "logit_scale": 0.5,
        "qk_norm": QkNorm(LAYER, 1e-5, HEAD),
    },
    "layer-post-norm": {
        "norm": NormSpec(LAYER, 1e-5, bias=True),
        "post_norm": True,
        "residual_scale": 0.5,
        "activation": Activation.RELU,
        "mlp_bias": True,
    },
    "parallel-post-norm": {"pre_norm": False, "post_norm": True, "parallel": True, "gated": False},
}
"""Arguments of `tiny_spec`, by what is special."""


def feature_spec(name: str) -> ModelSpec:
    """One of `FEATURES`."""
    return tiny_spec(**FEATURES[name])


@st.composite
def any_specs(draw: st.DrawFn) -> ModelSpec:
    """Any combination of parts, of one or two layers."""
    layers = draw(st.integers(1, 2))
    kind = draw(st.sampled_from(NormKind))
    ropes = draw(st.sampled_from([(), TWO_ROPES[:1], TWO_ROPES]))
    of_layer = st.builds(
        LayerSpec, window=st.sampled_from([None, 1, 5, 18]), rope=st.sampled_from([None, *range(len(ropes))])
    )
    caps = st.sampled_from([None, 1.5, 30.0])
    norms = st.builds(
        QkNorm, st.sampled_from(NormKind), st.just(1e-5), st.sampled_from(QkNormScope), st.sampled_from([0.0, 1.0])
    )
    scales = st.sampled_from([1.0, 0.5, 3.0])
    kv_heads = draw(st.sampled_from([1, 2]))
    return tiny_spec(
        num_layers=layers,
        num_heads=kv_heads * draw(st.sampled_from([1, 2, 9])),
        num_kv_heads=kv_heads,
        norm=NormSpec(kind, 1e-5, draw(st.sampled_from([0.0, 1.0])), kind is LAYER and draw(st.booleans())),
        pre_norm=draw(st.booleans()),
        post_norm=draw(st.booleans()),
        parallel=draw(st.booleans()),
        ropes=ropes,
        learned_positions=draw(st.booleans()),
        layers=tuple(draw(of_layer) for _ in range(layers)),
        qk_norm=draw(st.none() | norms),
        attention_scale=draw(st.sampled_from([0.125, 0.3])),
        attention_soft_cap=draw(caps),
        activation=draw(st.sampled_from(Activation)),
        gated=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        embedding_scale=draw(scales),
        residual_scale=draw(scales),
        logit_scale=draw(scales),
        logit_soft_cap=draw(caps),
        tied_embeddings=draw(st.booleans()),
    )


@st.composite
def any_fusions(draw: st.DrawFn) -> Fusion:
    """Any choice of what is fused."""
    return Fusion(*(draw(st.booleans()) for _ in fields(Fusion)))
