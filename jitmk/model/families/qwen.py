"""Qwen2ForCausalLM (Qwen 1.5, 2 and 2.5), which biases queries, keys and values, and Qwen3ForCausalLM, which normalises
every head of queries and keys."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import Defaults, loaded, read_decoder, read_sliding_layers, read_window
from jitmk.model.families.names import LLAMA_NAMES, QK_NORM_NAMES, tensor_refs
from jitmk.model.spec import LayerSpec, NormKind, QkNorm, QkNormScope

_DEFAULTS = Defaults(max_positions=32768, num_kv_heads=32)


def read_qwen2(config: ConfigReader) -> LoadedFamily:
    """Reads a Qwen2ForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "qwen2", _DEFAULTS)
    spec = replace(spec, qkv_bias=True, layers=_read_layers(config, spec.num_layers))
    return loaded(config, spec, tensor_refs(spec, LLAMA_NAMES))


def read_qwen3(config: ConfigReader) -> LoadedFamily:
    """Reads a Qwen3ForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "qwen3", replace(_DEFAULTS, head_dim=128))
    attention_bias = config.flag("attention_bias")
    spec = replace(
        spec,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        qk_norm=QkNorm(NormKind.RMS, spec.norm.eps, QkNormScope.HEAD),
        layers=_read_layers(config, spec.num_layers),
    )
    return loaded(config, spec, tensor_refs(spec, {**LLAMA_NAMES, **QK_NORM_NAMES}))


def _read_layers(config: ConfigReader, num_layers: int) -> tuple[LayerSpec, ...]:
    """Layers from `max_window_layers` on slide, unless the config lists them; none does without use_sliding_window."""
    window = read_window(config, 4096)
    if not config.flag("use_sliding_window"):
        window = None
    first = config.integer("max_window_layers", 28, minimum=0)
    by_default = tuple(window is not None and layer >= first for layer in range(num_layers))
    return read_sliding_layers(config, num_layers, window, by_default)


QWEN2 = Family("qwen2", ("Qwen2ForCausalLM",), read_qwen2)
QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), read_qwen3)
