"""Tiny models: specs that run in no time. `jitmk.model.checkpoint.RandomCheckpoint` makes weights for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jitmk.model.spec import Activation, LayerSpec, ModelSpec, NormKind, NormSpec, RopeKind, RopeSpec

ROPES = {
    RopeKind.DEFAULT: RopeSpec(RopeKind.DEFAULT, 10000.0, 0),
    RopeKind.LINEAR: RopeSpec(RopeKind.LINEAR, 10000.0, 0, factor=4.0),
    RopeKind.DYNAMIC: RopeSpec(RopeKind.DYNAMIC, 10000.0, 0, factor=2.0, original_max_positions=32),
    RopeKind.LLAMA3: RopeSpec(
        RopeKind.LLAMA3, 10000.0, 0, factor=8.0, original_max_positions=32, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    RopeKind.YARN: RopeSpec(
        RopeKind.YARN, 10000.0, 0, factor=4.0, original_max_positions=32, attention_factor=1.1386294361119891
    ),
    RopeKind.LONGROPE: RopeSpec(
        RopeKind.LONGROPE, 10000.0, 0, original_max_positions=32, attention_factor=1.1832159566199232
    ),
}
"""One rotary embedding of each kind; `tiny_rope` fills in `rotary_dim` and what depends on it."""


def tiny_spec(*, rope: RopeKind | None = RopeKind.DEFAULT, rotary_dim: int = 0, **changes: Any) -> ModelSpec:
    """A model of two layers with a hidden size of 64; any field of ModelSpec may be changed.

    Args:
        rope: of all layers, where `layers` and `ropes` do not say otherwise; None for no rotation.
        rotary_dim: of that rope; 0 for whole heads.
    """
    fields: dict[str, Any] = {
        "family": "llama",
        "vocab_size": 101,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 64,
        "norm": NormSpec(NormKind.RMS, 1e-5),
        "activation": Activation.SILU,
        "max_positions": 256,
        "tied_embeddings": False,
    } | changes
    fields.setdefault("ropes", () if rope is None else (tiny_rope(rope, rotary_dim or fields["head_dim"]),))
    fields.setdefault("layers", (LayerSpec(rope=0 if fields["ropes"] else None),) * fields["num_layers"])
    fields.setdefault("attention_scale", fields["head_dim"] ** -0.5)
    return ModelSpec(**fields)


def tiny_rope(kind: RopeKind, rotary_dim: int) -> RopeSpec:
    """The member of `ROPES`, for that many dimensions."""
    rope = replace(ROPES[kind], rotary_dim=rotary_dim)
    if kind is not RopeKind.LONGROPE:
        return rope
    half = range(rotary_dim // 2)
    return replace(rope, short_factors=tuple(1 + i / 50 for i in half), long_factors=tuple(2 + i / 10 for i in half))
