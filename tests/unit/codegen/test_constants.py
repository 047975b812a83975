"""Configs in the device code: every field is there, floats keep their bits, and enums have twins."""

from __future__ import annotations

import re
import struct
from dataclasses import fields
from enum import Enum

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen.constants import constants_of, float_literal
from jitmk.model.spec import Activation, NormKind
from jitmk.program.configs import AttentionConfig, EmbedConfig, Epilogue, MatvecConfig, NoOpConfig, Prologue
from tests.support.compilers import require_compiler
from tests.support.rendering import inline, isa_part
from tests.support.tiny import tiny_spec

ATTENTION = AttentionConfig(8, 2, 64, 4, 0.125, output_copies=1, window=True, qk_norm=NormKind.RMS, soft_cap=50.0)


def test_every_field_is_a_constant() -> None:
    constants = {constant.name: (constant.type, constant.value) for constant in constants_of(ATTENTION)}
    assert [name.lower() for name in constants] == [field.name for field in fields(ATTENTION)]
    assert constants["HEAD_DIM"] == ("int", "64")
    assert constants["WINDOW"] == ("bool", "true") and constants["APPEND"] == ("bool", "true")
    assert constants["QK_NORM"] == ("vm::NormKind", "vm::NormKind::RMS")
    assert constants["SCALE"][0] == "float" and float(constants["SOFT_CAP"][1][:-1]) == 50.0


def test_none_is_a_member_of_an_enum_and_zero_of_a_number() -> None:
    constants = {constant.name: constant.value for constant in constants_of(MatvecConfig(8, 16, Epilogue.LOGITS))}
    assert constants["ACTIVATION"] == "vm::Activation::NONE" and constants["POST"] == "vm::NormKind::NONE"
    assert float(constants["SOFT_CAP"][:-1]) == 0.0


def test_matrices_come_with_their_layout() -> None:
    for config in (MatvecConfig(101, 2048, Epilogue.LOGITS), EmbedConfig(101, 2048, True, 2)):
        constants = {constant.name: constant.value for constant in constants_of(config)}
        assert (constants["BLOCKS"], constants["CHUNKS"]) == ("8", "2")
    assert constants_of(NoOpConfig()) == ()


@pytest.mark.parametrize("value", [1e-5, 1e-6, 3.4028234e38, 1.17549435e-38, 0.1, 0.0, -50.0])
def test_float_literals_keep_every_bit(value: float) -> None:
    literal = float_literal(value)
    assert re.fullmatch(r"-?\d\.\d+e[+-]\d+f", literal)
    assert struct.pack("f", float(literal[:-1])) == struct.pack("f", value)


def test_enums_have_twins_in_the_device_code() -> None:
    arch = GpuArch.parse("sm_90a")
    kinds: tuple[type[Enum], ...] = (Activation, NormKind, Prologue, Epilogue)
    names = [f"jitmk::vm::{kind.__name__}::{member.name}" for kind in kinds for member in kind]
    names += [f"jitmk::vm::{kind.__name__}::NONE" for kind in (Activation, NormKind)]
    uses = "".join(f"static_assert(static_cast<int>({name}) >= 0);\n" for name in names)
    source = isa_part(tiny_spec(), arch) + '#include "jitmk/vm/matvec.cuh"\n' + uses
    require_compiler("nvrtc", arch).compile(inline(source) + 'extern "C" __global__ void unused() {}\n', arch)
