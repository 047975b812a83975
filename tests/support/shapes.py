"""Shapes of models that people run. No weights: for code generation, and for random weights on a GPU."""

from __future__ import annotations

from jitmk.model.spec import Activation, LayerSpec, ModelSpec, NormKind, NormSpec, RopeKind, RopeSpec


def llama(
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    vocab_size: int = 128256,
    tied: bool = False,
    max_positions: int = 131072,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
) -> ModelSpec:
    """A Llama with the default rotary embedding."""
    return ModelSpec(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm=NormSpec(NormKind.RMS, 1e-5),
        ropes=(RopeSpec(RopeKind.DEFAULT, 500000.0, head_dim),),
        layers=(LayerSpec(),) * num_layers,
        attention_scale=head_dim**-0.5,
        activation=Activation.SILU,
        max_positions=max_positions,
        tied_embeddings=tied,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
    )


LLAMA_1B = llama(2048, 8192, 16, 32, 8, 64, tied=True)
LLAMA_3B = llama(3072, 8192, 28, 24, 8, 128, tied=True)
LLAMA_8B = llama(4096, 14336, 32, 32, 8, 128)
LLAMA_405B = llama(16384, 53248, 126, 128, 8, 128)
