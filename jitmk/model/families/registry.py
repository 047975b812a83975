"""Which families jitmk knows, and the way from a config.json to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitmk.errors import ConfigError, UnsupportedModelError
from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.cohere import COHERE
from jitmk.model.families.config_reader import ConfigReader, shown
from jitmk.model.families.gemma import GEMMA2, GEMMA3
from jitmk.model.families.gpt2 import GPT2
from jitmk.model.families.granite import GRANITE
from jitmk.model.families.harmless import HARMLESS_KEYS
from jitmk.model.families.limits import check_spec, limit_context
from jitmk.model.families.llama import LLAMA
from jitmk.model.families.mistral import MINISTRAL, MISTRAL
from jitmk.model.families.olmo2 import OLMO2
from jitmk.model.families.phi3 import PHI3
from jitmk.model.families.qwen import QWEN2, QWEN3
from jitmk.model.families.smollm3 import SMOLLM3
from jitmk.model.families.starcoder2 import STARCODER2
from jitmk.model.families.unsupported import what_it_is
from jitmk.model.spec import weight_shapes

_FAMILIES: dict[str, Family] = {}


def register_family(family: Family, *, replace: bool = False) -> None:
    """Makes `family` known under its model_type.

    Raises:
        ConfigError: the model_type is taken and `replace` is false.
    """
    if family.model_type in _FAMILIES and not replace:
        raise ConfigError(f"model_type {family.model_type!r} is already registered: pass replace=True to override it")
    _FAMILIES[family.model_type] = family


def supported_model_types() -> tuple[str, ...]:
    """The model_types that are registered, sorted."""
    return tuple(sorted(_FAMILIES))


def spec_from_config(config: Mapping[str, Any], *, max_seq_len: int | None = None) -> LoadedFamily:
    """What the model of a config.json computes and where its tensors are.

    Args:
        config: the parsed config.json.
        max_seq_len: cut the context to this many tokens; None for all that the config allows.

    Raises:
        UnsupportedModelError: a family, or a setting of one, that jitmk does not run.
        ConfigError: a malformed config.
        ContextLengthError: a `max_seq_len` that is not positive or past the model's context.
    """
    family = _family_of(config)
    reader = ConfigReader(config)
    loaded = family.read(reader)
    reader.finish(HARMLESS_KEYS | family.harmless)
    check_spec(loaded.spec)
    unmapped = weight_shapes(loaded.spec).keys() - loaded.tensors.keys()
    if unmapped:
        raise ConfigError(
            f"family {family.model_type!r} does not say where it keeps {', '.join(sorted(map(str, unmapped)))}"
        )
    return limit_context(loaded, max_seq_len)


def _family_of(config: Mapping[str, Any]) -> Family:
    supported = ", ".join(supported_model_types())
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ConfigError(f"config.json: architectures={shown(architectures)} must be a list of names")
    model_type = config.get("model_type")
    if model_type is None:
        matches = [family for family in _FAMILIES.values() if set(family.architectures) & set(architectures)]
        if not matches:
            raise ConfigError(f"config.json has no model_type; jitmk runs {supported}")
        return matches[0]
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        kind = what_it_is(model_type) if isinstance(model_type, str) else None
        if kind is not None:
            raise UnsupportedModelError(
                f"model_type={shown(model_type)} is {kind}: not supported yet; jitmk runs dense decoders of text: "
                f"{supported}"
            )
        # A config of a nested or quantised kind says more about itself than its model_type does.
        ConfigReader(config).refuse_known()
        raise UnsupportedModelError(
            f"model_type={shown(model_type)} is not supported: jitmk runs {supported}; docs/adding-a-model.md shows "
            "how to add a dense decoder in Python alone"
        )
    if architectures and family.architectures and not set(architectures) & set(family.architectures):
        raise UnsupportedModelError(
            f"architectures={shown(architectures)} is not supported for model_type={model_type!r}: "
            f"jitmk runs {' or '.join(family.architectures)}"
        )
    return family


for _family in (
    COHERE,
    GEMMA2,
    GEMMA3,
    GPT2,
    GRANITE,
    LLAMA,
    MINISTRAL,
    MISTRAL,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
    STARCODER2,
):
    register_family(_family)
