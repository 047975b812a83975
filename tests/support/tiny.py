"""Tiny models: specs that run in no time. `jitmk.model.checkpoint.RandomCheckpoint` makes weights for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jitmk.model.spec import Activation, ModelSpec, RopeKind, RopeSpec

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
}
"""One rotary embedding of each kind; `rotary_dim` is filled in by `tiny_spec`."""


def tiny_spec(*, rope: RopeKind = RopeKind.DEFAULT, **changes: Any) -> ModelSpec:
    """A model of two layers with a hidden size of 64; any field of ModelSpec may be changed."""
    spec = ModelSpec(
        family="llama",
        vocab_size=101,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        norm_eps=1e-5,
        activation=Activation.SILU,
        rope=ROPES[rope],
        max_positions=256,
        tied_embeddings=False,
    )
    spec = replace(spec, **changes)
    return replace(spec, rope=replace(spec.rope, rotary_dim=spec.rope.rotary_dim or spec.head_dim))
