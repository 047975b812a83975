"""config.json's rotary embedding, in both spellings, as a RopeSpec.

Up to transformers 4 a config has `rope_theta` and, when the context was extended, `rope_scaling` (with `rope_type`, or
`type` in older files). From transformers 5 on, `rope_parameters` holds all of it. Where the two versions read a key
differently, this module follows transformers 5.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from jitmk.errors import ConfigError, UnsupportedModelError
from jitmk.model.families.config_reader import ConfigReader, shown
from jitmk.model.spec import RopeKind, RopeSpec

_TYPE_KEYS = frozenset({"rope_type", "type"})
_COMMON_KEYS = _TYPE_KEYS | {"rope_theta", "partial_rotary_factor"}
_SCALING_KEYS = frozenset({"factor", "original_max_position_embeddings"})
_KEYS_OF_KIND = {
    RopeKind.DEFAULT: frozenset[str](),
    RopeKind.LINEAR: _SCALING_KEYS,
    RopeKind.DYNAMIC: _SCALING_KEYS,
    RopeKind.LONGROPE: _SCALING_KEYS | {"attention_factor", "short_factor", "long_factor"},
    RopeKind.LLAMA3: _SCALING_KEYS | {"low_freq_factor", "high_freq_factor"},
    # `finetuned` is in the configs of the YaRN authors; nothing reads it.
    RopeKind.YARN: _SCALING_KEYS
    | {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"},
}


@dataclass(frozen=True)
class RopeRules:
    """What is particular about a family's rotary embedding.

    Attributes:
        theta: the base where the config gives none.
        partial: whether `partial_rotary_factor` may leave dimensions of a head as they are.
        renamed: its own names for rope types.
        original_positions: what it takes for `original_max_position_embeddings` beside the rope object, which then
            outranks the one inside; None for families that have it inside only.
    """

    theta: float = 10000.0
    partial: bool = False
    renamed: Mapping[str, RopeKind] = field(default_factory=dict)
    original_positions: int | None = None


LLAMA_ROPE = RopeRules()
"""Nothing particular."""


def read_rope(config: ConfigReader, head_dim: int, max_positions: int, rules: RopeRules) -> RopeSpec:
    """The rotary embedding of a config that has one for all layers.

    Args:
        config: the whole config.json.
        head_dim: dimensions of a head.
        max_positions: max_position_embeddings.
        rules: what is particular about the family.

    Raises:
        UnsupportedModelError: unknown kind, unknown keys, partial rotation where the family has none.
        ConfigError: values of the wrong type or range, or two spellings that disagree.
    """
    theta = config.number("rope_theta", rules.theta, minimum=1.0, exclusive=True)
    if rules.original_positions is not None:
        config.integer("original_max_position_embeddings", rules.original_positions)  # there whatever the kind
    return rope_of(config, _spelling(config, theta), theta, head_dim, max_positions, rules)


def rope_of(
    config: ConfigReader, rope: ConfigReader, theta: float, head_dim: int, max_positions: int, rules: RopeRules
) -> RopeSpec:
    """The rotary embedding that one rope object describes; `theta` is for objects without rope_theta.

    Raises as `read_rope`.
    """
    kind = _kind(rope, rules)
    _refuse_unknown(rope, kind)
    theta = rope.number("rope_theta", theta, minimum=1.0, exclusive=True)
    rotary_dim = _rotary_dim(config, rope, head_dim, rules)
    if kind is RopeKind.DEFAULT:
        return RopeSpec(kind, theta, rotary_dim)
    original = _original_positions(config, rope, max_positions, rules)
    if kind is RopeKind.YARN:
        return _yarn(rope, theta, rotary_dim, max_positions, original)
    if kind is RopeKind.LONGROPE:
        return _longrope(rope, theta, rotary_dim, max_positions, original)
    factor = rope.number("factor", minimum=1.0)
    if kind is RopeKind.LINEAR:
        return RopeSpec(kind, theta, rotary_dim, factor=factor)
    if kind is RopeKind.DYNAMIC:
        if original != max_positions:
            raise UnsupportedModelError(
                f"{rope.where}: dynamic rope with original_max_position_embeddings={original} and "
                f"max_position_embeddings={max_positions}: it scales from the latter, so they must agree"
            )
        return RopeSpec(kind, theta, rotary_dim, factor=factor, original_max_positions=original)
    low = rope.number("low_freq_factor", minimum=0.0, exclusive=True)
    high = rope.number("high_freq_factor", minimum=0.0, exclusive=True)
    if high <= low:
        raise ConfigError(f"{rope.where}: high_freq_factor={high:g} must be more than low_freq_factor={low:g}")
    return RopeSpec(
        kind, theta, rotary_dim, factor, original_max_positions=original, low_freq_factor=low, high_freq_factor=high
    )


def _rotary_dim(config: ConfigReader, rope: ConfigReader, head_dim: int, rules: RopeRules) -> int:
    """How many dimensions of a head are rotated: a share of them that the rope object or the config names."""
    share = config.number("partial_rotary_factor", 1.0, minimum=0.0, exclusive=True)
    reader = rope if "partial_rotary_factor" in rope else config
    share = rope.number("partial_rotary_factor", share, minimum=0.0, exclusive=True)
    if share != 1.0 and not rules.partial:
        raise UnsupportedModelError(
            f"{reader.where}: partial_rotary_factor={share:g} is not supported by this family: heads rotate fully"
        )
    if share > 1.0:
        raise ConfigError(f"{reader.where}: partial_rotary_factor={share:g} must be at most 1")
    return int(head_dim * share)


def _original_positions(config: ConfigReader, rope: ConfigReader, max_positions: int, rules: RopeRules) -> int:
    """The context before its extension. What stands in the place that a family does not read must say the same."""
    key = "original_max_position_embeddings"
    if rules.original_positions is None:
        inside = rope.integer(key, max_positions)
        beside = config.integer(key, inside)
    else:
        beside = config.integer(key, rules.original_positions)
        inside = rope.integer(key, beside)
    if beside != inside:
        raise ConfigError(
            f"{config.where}: {key}={beside}, but for the rotary embedding it is {inside}: write the right one in both"
        )
    return inside


def _spelling(config: ConfigReader, theta_outside: float) -> ConfigReader:
    """Whichever of `rope_scaling` and `rope_parameters` there is; both must agree."""
    old, new = config.mapping("rope_scaling"), config.mapping("rope_parameters")
    if old and new:
        defaults = {"rope_theta": theta_outside}
        if defaults | _renamed(old) != defaults | _renamed(new):
            raise ConfigError(
                f"{config.where}: rope_scaling and rope_parameters disagree: remove the one that is wrong"
            )
    name = "rope_scaling" if old else "rope_parameters"
    return ConfigReader(old or new, f"{config.where} {name}")


def _renamed(values: dict[str, object]) -> dict[str, object]:
    """A rope object with `type` spelled `rope_type`, without nulls."""
    kept = {key: value for key, value in values.items() if value is not None}
    if "type" in kept:
        kept.setdefault("rope_type", kept.pop("type"))
        kept.pop("type", None)
    return kept


def _kind(rope: ConfigReader, rules: RopeRules) -> RopeKind:
    named = [rope.text(key) for key in ("rope_type", "type") if key in rope]
    if len(set(named)) > 1:
        raise ConfigError(f"{rope.where}: rope_type={named[0]!r} and type={named[1]!r} disagree: remove the wrong one")
    name = named[0] if named else RopeKind.DEFAULT.value
    if name in rules.renamed:
        return rules.renamed[name]
    try:
        return RopeKind(name)
    except ValueError:
        supported = ", ".join(kind.value for kind in RopeKind)
        raise UnsupportedModelError(
            f"{rope.where}: rope type {shown(name)} is not supported: jitmk runs {supported}"
        ) from None


def _refuse_unknown(rope: ConfigReader, kind: RopeKind) -> None:
    unknown = sorted(rope.keys() - _COMMON_KEYS - _KEYS_OF_KIND[kind])
    if unknown:
        listed = ", ".join(f"{key}={shown(rope.raw(key))}" for key in unknown)
        known = ", ".join(sorted(_COMMON_KEYS | _KEYS_OF_KIND[kind]))
        raise UnsupportedModelError(
            f"{rope.where}: {listed}: unknown to rope type {kind.value!r}, whose keys are {known}"
        )


def _yarn(rope: ConfigReader, theta: float, rotary_dim: int, max_positions: int, original: int) -> RopeSpec:
    """YaRN (Peng et al. 2023, arXiv:2309.00071), with the attention factor of its section 3.4."""
    ratio = max_positions / original
    factor = rope.number("factor", max(ratio, 1.0), minimum=1.0)
    if factor != ratio and ratio != 1:
        warnings.warn(
            f"{rope.where}: factor={factor:g}, but max_position_embeddings={max_positions} is {ratio:g} times "
            f"original_max_position_embeddings={original}; the factor is used, as in transformers 5 (4 took the ratio)",
            stacklevel=2,
        )
    # transformers takes 0 for "not given" in these four.
    beta_fast = rope.number("beta_fast", 32.0, minimum=0.0) or 32.0
    beta_slow = rope.number("beta_slow", 1.0, minimum=0.0) or 1.0
    mscale = rope.number("mscale", 0.0, minimum=0.0)
    mscale_all_dim = rope.number("mscale_all_dim", 0.0, minimum=0.0)
    if beta_fast < beta_slow:
        raise ConfigError(f"{rope.where}: beta_fast={beta_fast:g} must not be less than beta_slow={beta_slow:g}")
    if mscale and mscale_all_dim:
        attention_factor = _temperature(factor, mscale) / _temperature(factor, mscale_all_dim)
    else:
        attention_factor = _temperature(factor, 1.0)
    return RopeSpec(
        RopeKind.YARN,
        theta,
        rotary_dim,
        factor,
        original_max_positions=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=rope.number("attention_factor", attention_factor, minimum=0.0, exclusive=True),
        truncate=rope.flag("truncate", True),
    )


def _temperature(factor: float, mscale: float) -> float:
    """What YaRN multiplies cos and sin with for a context `factor` times as long: 0.1 mscale ln(factor) + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0


def _longrope(rope: ConfigReader, theta: float, rotary_dim: int, max_positions: int, original: int) -> RopeSpec:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753), with the attention factor that its authors suggest."""
    factor = rope.number("factor", max_positions / original, minimum=0.0, exclusive=True)
    attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    return RopeSpec(
        RopeKind.LONGROPE,
        theta,
        rotary_dim,
        original_max_positions=original,
        attention_factor=rope.number("attention_factor", attention_factor, minimum=0.0, exclusive=True),
        short_factors=_divisors(rope, "short_factor", rotary_dim),
        long_factors=_divisors(rope, "long_factor", rotary_dim),
    )


def _divisors(rope: ConfigReader, key: str, rotary_dim: int) -> tuple[float, ...]:
    """One positive number for each pair of rotated dimensions."""
    values = rope.sequence(key)
    good = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if not good or not all(0 < value < math.inf for value in values):
        raise ConfigError(f"{rope.where}: {key}={shown(list(values))} must be a list of positive numbers")
    if len(values) != rotary_dim // 2:
        raise ConfigError(
            f"{rope.where}: {key} has {len(values)} numbers, but {rotary_dim} dimensions of a head are rotated: "
            f"it must have {rotary_dim // 2}, one for each pair"
        )
    return tuple(float(value) for value in values)
