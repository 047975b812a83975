"""Which variants share code: what a role does of an opcode depends on a part of its config only.

Less code compiles faster and leaves more room in the instruction cache. A projection's code is rendered, role by role,
from a config in which everything that the role must not depend on is neutral, so that a kernel that did depend on it
would be wrong for every model, and no test could miss it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

from jitmk.program.configs import Config, Epilogue, MatvecConfig, Prologue
from jitmk.program.program import Variant


class Role(Enum):
    """Who runs a piece of code; the value is its name in the templates."""

    LOAD = "load"
    CONSUME = "consume"
    STORE = "store"


def role_config(config: Config, role: Role) -> Config:
    """The part of a config on which the code of a role depends; the rest is neutral."""
    if not isinstance(config, MatvecConfig):
        return config
    if role is Role.LOAD:
        return MatvecConfig(
            0, config.columns, Epilogue.STORE, chunk_limit=config.chunk_limit, own_units=config.own_units
        )
    if config.own_units:  # consumers do all of it
        return config if role is Role.CONSUME else MatvecConfig(0, 0, Epilogue.STORE, own_units=True)
    if role is Role.STORE:
        scaled = config.prologue is Prologue.RMS  # 1/rms is applied to the dot products
        return replace(
            config,
            columns=config.columns if scaled else 0,
            prologue=config.prologue if scaled else Prologue.NONE,
            norm_eps=config.norm_eps if scaled else 0.0,
            norm_bias=False,
            heads=0,
            post=None,
            post_bias=False,
            post_scale=1.0,
            post_sum=False,
            input_copies=1,
            input_spread=1,
            residual_copies=config.residual_copies if config.epilogue is Epilogue.RESIDUAL else 1,
            lone_units=False,
            behind_own_units=False,
        )
    return replace(
        config,
        rows=config.rows if config.post_sum else 0,
        epilogue=Epilogue.STORE,
        norm_eps=config.norm_eps if config.needs_all else 0.0,
        bias=False,
        activation=None,
        scale=1.0,
        soft_cap=None,
        residual_copies=config.residual_copies if config.post is not None else 1,
        output_copies=1,
    )


def shared_code(variants: Sequence[Variant], role: Role) -> tuple[tuple[int, ...], ...]:
    """Indices of a kernel's variants in groups that share a role's code: that of the first is taken for all."""
    groups: dict[tuple[object, Config], list[int]] = {}
    for index, variant in enumerate(variants):
        groups.setdefault((variant.opcode, role_config(variant.config, role)), []).append(index)
    return tuple(map(tuple, groups.values()))
