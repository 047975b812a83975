"""Architecture families: one file each, from config.json to a ModelSpec and the names of its tensors.

What is exported here is what a family needs, one of yours too: docs/adding-a-model.md adds one.
"""

from __future__ import annotations

from jitmk.model.families.base import Family, InterleavedPairs, LoadedFamily, TensorRef
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import (
    Defaults,
    loaded,
    read_activation,
    read_decoder,
    read_head_dim,
    read_layer_types,
    read_sliding_layers,
    read_soft_cap,
    read_window,
    windowed,
)
from jitmk.model.families.names import LAYER, LLAMA_NAMES, QK_NORM_NAMES, stacked, tensor_refs
from jitmk.model.families.registry import register_family, spec_from_config, supported_model_types
from jitmk.model.families.rope_config import LLAMA_ROPE, RopeRules, read_rope

__all__ = [
    "LAYER",
    "LLAMA_NAMES",
    "LLAMA_ROPE",
    "QK_NORM_NAMES",
    "ConfigReader",
    "Defaults",
    "Family",
    "InterleavedPairs",
    "LoadedFamily",
    "RopeRules",
    "TensorRef",
    "loaded",
    "read_activation",
    "read_decoder",
    "read_head_dim",
    "read_layer_types",
    "read_rope",
    "read_sliding_layers",
    "read_soft_cap",
    "read_window",
    "register_family",
    "spec_from_config",
    "stacked",
    "supported_model_types",
    "tensor_refs",
    "windowed",
]
