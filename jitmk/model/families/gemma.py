"""Gemma2ForCausalLM and Gemma3ForCausalLM: norms before and behind each block, whose weights are stored minus 1, scaled
embeddings, GELU, and layers that see a window between layers that see everything."""

from __future__ import annotations

from dataclasses import replace

from jitmk.errors import ConfigError
from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader, shown
from jitmk.model.families.decoder import (
    Defaults,
    loaded,
    read_decoder,
    read_sliding_layers,
    read_soft_cap,
    read_window,
)
from jitmk.model.families.names import LAYER, LLAMA_NAMES, QK_NORM_NAMES, tensor_refs
from jitmk.model.families.rope_config import LLAMA_ROPE, rope_of
from jitmk.model.spec import LayerSpec, ModelSpec, NormKind, NormSpec, QkNorm, QkNormScope, Role, RopeSpec

_GEMMA2 = Defaults(
    max_positions=8192,
    num_kv_heads=4,
    head_dim=256,
    activation_key="hidden_activation",
    activation="gelu_pytorch_tanh",
    tied_embeddings=True,
)
_GEMMA3 = replace(_GEMMA2, max_positions=131072, rope=None)
_NAMES = {
    **LLAMA_NAMES,
    **QK_NORM_NAMES,
    Role.ATTENTION_POST_NORM: LAYER + "post_attention_layernorm.weight",
    Role.MLP_NORM: LAYER + "pre_feedforward_layernorm.weight",
    Role.MLP_POST_NORM: LAYER + "post_feedforward_layernorm.weight",
}
_STORED_MINUS = 1.0
# `hidden_act` is how hidden_activation was called at first; where both are, only the latter counts.
_HARMLESS = frozenset({"hidden_act", "cache_implementation", "sliding_window_size", "_sliding_window_pattern"})


def read_gemma2(config: ConfigReader) -> LoadedFamily:
    """Reads a Gemma2ForCausalLM config. Raises as `read_decoder`."""
    spec = _read_common(config, read_decoder(config, "gemma2", _GEMMA2), pattern=2)
    spec = replace(
        spec,
        attention_soft_cap=read_soft_cap(config, "attn_logit_softcapping", 50.0),
        logit_soft_cap=read_soft_cap(config, "final_logit_softcapping", 30.0),
    )
    return loaded(config, spec, tensor_refs(spec, _NAMES))


def read_gemma3(config: ConfigReader) -> LoadedFamily:
    """Reads a Gemma3ForCausalLM config, whose model_type is gemma3_text. Raises as `read_decoder`."""
    spec = read_decoder(config, "gemma3_text", _GEMMA3)
    spec = _read_common(config, spec, pattern=config.integer("sliding_window_pattern", 6))
    # Checkpoints have it null, and what it would mean is not agreed upon.
    config.refuse_unless("attn_logit_softcapping", reason="Gemma 3 normalises queries and keys instead")
    full, sliding = _read_ropes(config, spec)
    ropes = tuple(dict.fromkeys(full if layer.window is None else sliding for layer in spec.layers))
    spec = replace(
        spec,
        ropes=ropes,
        layers=tuple(
            replace(layer, rope=ropes.index(full if layer.window is None else sliding)) for layer in spec.layers
        ),
        qk_norm=QkNorm(NormKind.RMS, spec.norm.eps, QkNormScope.HEAD, offset=_STORED_MINUS),
        logit_soft_cap=read_soft_cap(config, "final_logit_softcapping"),
    )
    return loaded(config, spec, tensor_refs(spec, _NAMES))


def _read_common(config: ConfigReader, spec: ModelSpec, pattern: int) -> ModelSpec:
    """What both have; unless the config lists layers, every `pattern`th sees everything and the others a window."""
    config.refuse_unless("use_bidirectional_attention", False, reason="jitmk runs decoders, whose attention is causal")
    attention_bias = config.flag("attention_bias")
    alternating = tuple((layer + 1) % pattern != 0 for layer in range(spec.num_layers))
    return replace(
        spec,
        norm=NormSpec(NormKind.RMS, spec.norm.eps, offset=_STORED_MINUS),
        post_norm=True,
        layers=_read_layers(config, spec.num_layers, alternating),
        attention_scale=config.number("query_pre_attn_scalar", 256.0, minimum=0.0, exclusive=True) ** -0.5,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        embedding_scale=spec.hidden_size**0.5,
    )


def _read_layers(config: ConfigReader, num_layers: int, alternating: tuple[bool, ...]) -> tuple[LayerSpec, ...]:
    return read_sliding_layers(config, num_layers, read_window(config, 4096), alternating)


def _read_ropes(config: ConfigReader, spec: ModelSpec) -> tuple[RopeSpec, RopeSpec]:
    """The rotary embeddings of layers that see everything and of those that see a window.

    From transformers 5 on, `rope_parameters` has an object for each; before that, `rope_theta` and `rope_scaling` were
    the former's, and `rope_local_base_freq` all there was to the latter.
    """
    nested = ConfigReader(config.mapping("rope_parameters"), f"{config.where} rope_parameters")
    kinds = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
    unknown = sorted(nested.keys() - kinds.keys())
    if unknown:
        raise ConfigError(
            f"{nested.where}: {unknown[0]}={shown(nested.raw(unknown[0]))}: it must have one object for each of "
            f"{' and '.join(kinds)}"
        )
    ropes = []
    for kind, (theta_key, default) in kinds.items():
        values = nested.mapping(kind)
        if kind == "full_attention":
            values = values | config.mapping("rope_scaling")
        theta = config.number(theta_key, default, minimum=1.0, exclusive=True)
        reader = ConfigReader(values, f"{nested.where} {kind}")
        ropes.append(rope_of(config, reader, theta, spec.head_dim, spec.max_positions, LLAMA_ROPE))
    return ropes[0], ropes[1]


GEMMA2 = Family("gemma2", ("Gemma2ForCausalLM",), read_gemma2, _HARMLESS)
GEMMA3 = Family("gemma3_text", ("Gemma3ForCausalLM",), read_gemma3, _HARMLESS)
