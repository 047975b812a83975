"""Variants that share a role's code: those whose configs agree in all that the role may depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jitmk.codegen.sharing import Role, role_config, shared_code
from jitmk.engine.step_programs import kernel_variants
from jitmk.model.spec import ModelSpec, NormKind
from jitmk.program.configs import Epilogue, MatvecConfig, Prologue
from tests.support.tiny import tiny_spec

SPEC = tiny_spec()
WIDE = tiny_spec(hidden_size=2048)  # whose warps have no units of their own
CONFIG = MatvecConfig(64, 32, Epilogue.STORE, Prologue.RMS, norm_eps=1e-5, input_copies=2)


def names(role: Role, spec: ModelSpec = WIDE) -> set[frozenset[str]]:
    """The groups of a Llama's variants, by name."""
    variants = kernel_variants(spec)
    return {frozenset(variants[i].name for i in code) for code in shared_code(variants, role)}


def test_who_shares_in_a_llama() -> None:
    assert frozenset({"qkv", "gate_up", "lm_head"}) in names(Role.CONSUME)
    assert frozenset({"o_proj", "down"}) in names(Role.STORE)
    assert all(len(group & {"qkv", "gate_up", "lm_head"}) < 2 for group in names(Role.STORE))


def test_consumers_that_publish_share_less_and_storers_more() -> None:
    assert all(len(group & {"qkv", "gate_up", "lm_head"}) < 2 for group in names(Role.CONSUME, SPEC))
    assert frozenset({"qkv", "gate_up"}) in names(Role.STORE, SPEC)
    assert frozenset({"qkv", "gate_up"}) in names(Role.LOAD, SPEC)


@pytest.mark.parametrize("role", Role)
def test_every_variant_has_code(role: Role) -> None:
    variants = kernel_variants(SPEC)
    codes = shared_code(variants, role)
    assert sorted(i for code in codes for i in code) == list(range(len(variants)))


def test_code_is_named_by_all_that_it_serves() -> None:
    variants = [variant for variant in kernel_variants(WIDE) if variant.name in ("attention", "qkv", "gate_up")]
    assert [variant.name for variant in variants] == ["qkv", "attention", "gate_up"]
    assert shared_code(variants, Role.CONSUME) == ((0, 2), (1,))


@pytest.mark.parametrize(
    ("role", "changes", "same"),
    [
        (Role.LOAD, {"rows": 8, "epilogue": Epilogue.LOGITS, "prologue": Prologue.NONE}, True),
        (Role.LOAD, {"columns": 64}, False),
        (Role.CONSUME, {"rows": 8, "epilogue": Epilogue.LOGITS, "bias": True, "norm_eps": 1e-6}, True),
        (Role.CONSUME, {"input_copies": 1}, False),
        (Role.CONSUME, {"input_spread": 4}, False),
        (Role.CONSUME, {"post": NormKind.RMS}, False),
        (Role.CONSUME, {"lone_units": True}, False),
        (Role.CONSUME, {"behind_own_units": True}, False),
        (Role.LOAD, {"lone_units": True, "behind_own_units": True}, True),
        (Role.STORE, {"lone_units": True, "behind_own_units": True}, True),
        (Role.LOAD, {"own_units": True}, False),
        (Role.STORE, {"input_copies": 1, "input_spread": 4}, True),
        (Role.STORE, {"columns": 64}, False),
        (Role.STORE, {"norm_eps": 1e-6}, False),
        (Role.STORE, {"soft_cap": 30.0}, False),
    ],
)
def test_what_a_role_depends_on(role: Role, changes: dict[str, object], same: bool) -> None:
    changed = replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert (role_config(changed, role) == role_config(CONFIG, role)) is same


@pytest.mark.parametrize("change", [{"epilogue": Epilogue.RESIDUAL}, {"norm_eps": 1e-6}, {"bias": True}, {"rows": 8}])
def test_of_own_units_consumers_do_all(change: dict[str, object]) -> None:
    own = replace(CONFIG, own_units=True)
    changed = replace(own, **change)  # type: ignore[arg-type]
    assert role_config(changed, Role.CONSUME) == changed
    for role in (Role.LOAD, Role.STORE):
        assert role_config(changed, role) == role_config(own, role)
