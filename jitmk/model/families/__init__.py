"""Architecture families: one file each, from config.json to a ModelSpec and the names of its tensors."""

from __future__ import annotations

from jitmk.model.families.base import Family, InterleavedPairs, LoadedFamily, TensorRef
from jitmk.model.families.registry import register_family, spec_from_config, supported_model_types

__all__ = [
    "Family",
    "InterleavedPairs",
    "LoadedFamily",
    "TensorRef",
    "register_family",
    "spec_from_config",
    "supported_model_types",
]
