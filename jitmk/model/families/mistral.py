"""MistralForCausalLM, whose layers all see a window if it has one, and MinistralForCausalLM, where some do."""

from __future__ import annotations

from dataclasses import replace

from jitmk.errors import UnsupportedModelError
from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import (
    Defaults,
    loaded,
    read_decoder,
    read_layer_types,
    read_sliding_layers,
    read_window,
    windowed,
)
from jitmk.model.families.names import LLAMA_NAMES, tensor_refs

_DEFAULTS = Defaults(max_positions=131072, num_kv_heads=8)
_WINDOW = 4096


def read_mistral(config: ConfigReader) -> LoadedFamily:
    """Reads a MistralForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "mistral", _DEFAULTS)
    window = read_window(config, _WINDOW)
    layers = windowed(config, (window is not None,) * spec.num_layers, window)
    types = read_layer_types(config, spec.num_layers)
    if types is not None and set(types) != {"full_attention" if window is None else "sliding_attention"}:
        # Elsewhere they are ignored, so nobody can tell what the checkpoint was trained with.
        raise UnsupportedModelError(
            f"{config.where}: sliding_window={window} and a layer_types that says otherwise are not supported for "
            'model_type "mistral", whose layers are all alike; if some layers are to slide, it is a "ministral"'
        )
    spec = replace(spec, layers=layers)
    return loaded(config, spec, tensor_refs(spec, LLAMA_NAMES))


def read_ministral(config: ConfigReader) -> LoadedFamily:
    """Reads a MinistralForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "ministral", _DEFAULTS)
    window = read_window(config, _WINDOW)
    all_alike = (window is not None,) * spec.num_layers
    spec = replace(spec, layers=read_sliding_layers(config, spec.num_layers, window, all_alike))
    return loaded(config, spec, tensor_refs(spec, LLAMA_NAMES))


MISTRAL = Family("mistral", ("MistralForCausalLM",), read_mistral)
MINISTRAL = Family("ministral", ("MinistralForCausalLM",), read_ministral)
