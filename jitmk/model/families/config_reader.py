"""Typed, strict reading of config.json: what nobody has read in the end is either known to be harmless or refused."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from jitmk.errors import ConfigError, UnsupportedModelError

_REFUSALS = {
    "quantization_config": "quantised checkpoints are not supported: use the bf16, fp16 or fp32 original",
    "compression_config": "compressed checkpoints are not supported: use the bf16, fp16 or fp32 original",
    "vision_config": "models that see are not supported: jitmk runs text decoders",
    "audio_config": "models that hear are not supported: jitmk runs text decoders",
    "text_config": "multimodal models are not supported: jitmk runs text decoders",
    "is_encoder_decoder": "encoder-decoder models are not supported: jitmk runs decoders",
    "num_experts": "mixture-of-experts models are not supported: jitmk runs dense models",
    "num_local_experts": "mixture-of-experts models are not supported: jitmk runs dense models",
    "n_routed_experts": "mixture-of-experts models are not supported: jitmk runs dense models",
}
"""Keys that no family reads, when they are set: each says what it asks for in words."""


def shown(value: object) -> str:
    """`value` for an error message, cut to a length that keeps the message readable."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class ConfigReader:
    """A JSON object that remembers which of its keys were read.

    null counts as absent, but for keys whose default is a feature that null turns off: ask `is_null` about those.

    Args:
        values: the object.
        where: what error messages call it.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.where = where
        self._values = {key: value for key, value in values.items() if value is not None}
        self._nulls = values.keys() - self._values.keys()
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys(self) -> set[str]:
        """Every key that is set."""
        return set(self._values)

    def is_null(self, key: str) -> bool:
        """Whether `key` is there and null."""
        return key in self._nulls

    def raw(self, key: str, default: Any = None) -> Any:
        """The value of `key` as it is, or `default`."""
        self._read.add(key)
        return self._values.get(key, default)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """An integer of at least `minimum`. Raises ConfigError when it is absent without a default, or is not one."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(f"{self.where}: {key}={shown(value)} must be an integer, {minimum} or more")
        return value

    def number(self, key: str, default: float | None = None, *, minimum: float, exclusive: bool = False) -> float:
        """A finite number of at least (`exclusive`: more than) `minimum`. Raises ConfigError as `integer` does."""
        value = self._required(key, default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < minimum or (exclusive and value == minimum):
            bound = f"more than {minimum:g}" if exclusive else f"{minimum:g} or more"
            raise ConfigError(f"{self.where}: {key}={shown(value)} must be a finite number, {bound}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean. Raises ConfigError when it is something else."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key}={shown(value)} must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises ConfigError when it is absent without a default, or is not one."""
        value = self._required(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: {key}={shown(value)} must be a string")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, empty when absent. Raises ConfigError when it is something else."""
        value = self.raw(key, {})
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}: {key}={shown(value)} must be an object")
        return value

    def sequence(self, key: str) -> tuple[Any, ...]:
        """A list, empty when absent. Raises ConfigError when it is something else."""
        value = self.raw(key, [])
        if not isinstance(value, list):
            raise ConfigError(f"{self.where}: {key}={shown(value)} must be a list")
        return tuple(value)

    def refuse_unless(self, key: str, *allowed: Any, reason: str) -> None:
        """Takes a key that has one supported meaning.

        Raises:
            UnsupportedModelError: it is set to something that is not in `allowed`.
        """
        if key in self and self.raw(key) not in allowed:
            raise UnsupportedModelError(f"{self.where}: {key}={shown(self.raw(key))} is not supported: {reason}")

    def refuse_known(self) -> None:
        """Refuses what no family supports and what has a clearer reason than an unknown key.

        Raises:
            UnsupportedModelError: for example a quantization_config.
        """
        for key, reason in _REFUSALS.items():
            if key not in self._read and self._values.get(key):
                raise UnsupportedModelError(f"{self.where}: {key}={shown(self._values[key])}: {reason}")

    def finish(self, harmless: Collection[str]) -> None:
        """Refuses keys that were not read, are not harmless, and are set to something that could matter.

        false, 0, "" and empty collections are taken for a feature that is off.

        Raises:
            UnsupportedModelError: names the keys and their values.
        """
        self.refuse_known()
        unknown = {key: value for key, value in self._values.items() if key not in self._read and value}
        unknown = {key: value for key, value in unknown.items() if key not in harmless}
        if unknown:
            listed = ", ".join(f"{key}={shown(value)}" for key, value in sorted(unknown.items()))
            raise UnsupportedModelError(
                f"{self.where}: {listed}: jitmk does not know what this changes in the model, and will not guess. "
                "If it does not change what the model computes, remove it from config.json"
            )

    def _required(self, key: str, default: Any) -> Any:
        value = self.raw(key, default)
        if value is None:
            raise ConfigError(f"{self.where} lacks {key}, which says how the model is built")
        return value
