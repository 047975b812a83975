"""The config of a variant as constants of its device code: a C++ struct has every field of it, in capitals."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_type_hints

from jitmk.program.configs import Config, EmbedConfig, MatvecConfig

NONE = "NONE"
"""The member that an enum of the device code has for None."""


@dataclass(frozen=True)
class Constant:
    """`static constexpr <type> <name> = <value>;`"""

    type: str
    name: str
    value: str


def constants_of(config: Config) -> tuple[Constant, ...]:
    """Every field of a config, and what the device code needs to know of the layout of its matrix.

    Enums of Python have a twin of the same name and members in the device code. None is `NONE` of an enum and 0 of a
    number.
    """
    hints = get_type_hints(type(config))
    constants = [_constant(field.name, hints[field.name], getattr(config, field.name)) for field in fields(config)]
    if isinstance(config, MatvecConfig | EmbedConfig):
        layout = config.layout
        constants += [_constant(name, int, getattr(layout, name)) for name in ("blocks", "chunks", "unit_blocks")]
    if isinstance(config, MatvecConfig):
        constants.append(_constant("input_in_shared", bool, config.input_in_shared))
    return tuple(constants)


def _constant(name: str, hint: Any, value: Any) -> Constant:
    (kind,) = [part for part in get_args(hint) if part is not NoneType] or [hint]
    if issubclass(kind, Enum):
        member = NONE if value is None else value.name
        return Constant(f"vm::{kind.__name__}", name.upper(), f"vm::{kind.__name__}::{member}")
    if kind is bool:
        return Constant("bool", name.upper(), "true" if value else "false")
    if kind is int:
        return Constant("int", name.upper(), str(value))
    assert kind is float, f"no device type for {hint}"
    return Constant("float", name.upper(), float_literal(value or 0.0))


def float_literal(value: float) -> str:
    """A C++ float literal that keeps every bit."""
    return f"{value:.9e}f"
