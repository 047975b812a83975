"""The border between host and kernel: what Python believes of it is what the compilers make of the rendered text."""

from __future__ import annotations

import ctypes

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import abi
from jitmk.codegen.stream import STREAM_FIELDS, StreamParams, render_stream
from jitmk.errors import CompileError
from jitmk.program import isa, packing
from jitmk.program.builder import ProgramBuilder
from jitmk.program.configs import ELEMENTWISE_VALUES, LSE_WORDS
from jitmk.program.program import Buffer, BufferKind, word_spread
from tests.support.compilers import COMPILERS, require_compiler
from tests.support.rendering import inline, isa_part
from tests.support.tiny import tiny_spec

ARCH = GpuArch.parse("sm_90a")


def _check(compiler_name: str, source: str, assertions: list[str]) -> None:
    """Compiles static assertions behind a source; each must hold, and a false one must not."""
    compiler = require_compiler(compiler_name, ARCH)
    text = source + "\n".join(f'static_assert({a}, "{a}");' for a in assertions) + "\n"
    compiler.compile(text + 'extern "C" __global__ void unused() {}\n', ARCH)


def _offset(struct: str, field: str) -> str:
    # NVRTC has no offsetof; this is how its front end spells what the macro does.
    return f"__INTADDR__(&((({struct}*)0)->{field}))"


def _layout(struct: str, mirror: type[ctypes.Structure], fields: tuple[abi.Field, ...]) -> list[str]:
    assertions = [f"sizeof({struct}) == {ctypes.sizeof(mirror)}", f"alignof({struct}) == {ctypes.alignment(mirror)}"]
    for field in fields:
        descriptor = getattr(mirror, field.name)
        assertions.append(f"{_offset(struct, field.name)} == {descriptor.offset}")
        assertions.append(f"sizeof((({struct}*)0)->{field.name}) == {descriptor.size}")
    return assertions


@pytest.mark.parametrize("compiler_name", COMPILERS)
def test_launch_parameter_has_one_layout(compiler_name: str) -> None:
    source = inline(isa_part(tiny_spec(), ARCH))
    _check(compiler_name, source, _layout("jitmk::isa::Params", abi.KernelParams, abi.PARAM_FIELDS))


@pytest.mark.parametrize("compiler_name", COMPILERS)
def test_stream_parameter_has_one_layout(compiler_name: str) -> None:
    _check(compiler_name, render_stream(ARCH), _layout("jitmk::StreamParams", StreamParams, STREAM_FIELDS))


@pytest.mark.parametrize("compiler_name", COMPILERS)
def test_constants_are_those_of_python(compiler_name: str) -> None:
    expected = {
        "INSTRUCTION_WORDS": isa.INSTRUCTION_WORDS,
        "END_VARIANT": isa.END_VARIANT,
        "CONSUMER_WARPS": packing.CONSUMER_WARPS,
        "BLOCK_COLUMNS": packing.BLOCK_COLUMNS,
        "BLOCK_BYTES": packing.BLOCK_BYTES,
        "GRAIN_BYTES": packing.GRAIN_BYTES,
        "LSE_WORDS": LSE_WORDS,
        "ELEMENTWISE_VALUES": ELEMENTWISE_VALUES,
        "HOST_TOKENS": abi.HOST_TOKENS,
        "NO_TOKEN": abi.NO_TOKEN,
        "STOP_BIT": abi.STOP_BIT,
        "FILTER_BINS": abi.FILTER_BINS,
        "FILTER_ROUND_WORDS": abi.FILTER_ROUND_WORDS,
        "WORKING_WARPS": abi.WORKING_WARPS,
        "WARPS": abi.WARPS,
        "UNIT_ROWS": packing.UNIT_ROWS,
    }
    expected |= {name.upper(): index for index, name in enumerate(isa.HEADER)}
    for opcode, names in isa.OPERANDS.items():
        expected |= {f"{opcode.value}::{name.upper()}": isa.operand_index(opcode, name) for name in names}
    assertions = [f"jitmk::isa::{name} == {value}" for name, value in expected.items()]
    assertions += [f"static_cast<int>(jitmk::isa::Wait::{wait.name}) == {wait.value}" for wait in abi.Wait]
    assertions += [f"jitmk::isa::REPORT_{word.name} == {word.value}" for word in abi.ReportWord]
    for values in (1, 2, 63, 64, 65, 2048):
        buffer = Buffer("x", BufferKind.FP32, values, tokens=1, copies=2, offset=0)
        assertions.append(f"jitmk::isa::copy_stride({buffer.words}) == {buffer.copy_stride}")
    for spread in (1, 4):
        buffer = Buffer("x", BufferKind.BF16, 300, tokens=1, copies=1, offset=0, spread=spread)
        for word, place in enumerate(buffer.places().tolist()):
            assertions.append(f"jitmk::isa::spread_word({word}, {spread}) == {place}")
    narrow = ProgramBuilder(1, word_spread(tiny_spec().hidden_size))
    assertions.append(f"jitmk::isa::bf16_stride(150) == {narrow.bf16('x', 300).copy_stride}")
    first, second = narrow.logarithms("lse", 2).places()[::LSE_WORDS].tolist()
    assertions.append(f"jitmk::isa::LSE_STRIDE == {second - first}")
    _check(compiler_name, inline(isa_part(tiny_spec(), ARCH)), assertions)


@pytest.mark.parametrize("compiler_name", COMPILERS)
def test_a_wrong_layout_would_be_noticed(compiler_name: str) -> None:
    """The assertions above are evaluated: a field one byte off fails."""
    offset = abi.KernelParams.words.offset + 1
    with pytest.raises(CompileError, match="static assertion failed"):
        _check(
            compiler_name,
            inline(isa_part(tiny_spec(), ARCH)),
            [f"{_offset('jitmk::isa::Params', 'words')} == {offset}"],
        )


def test_reports_fit_their_buffer() -> None:
    assert abi.ReportWord.WARPS + 2 * abi.WORKING_WARPS <= abi.REPORT_WORDS
    assert max(abi.ReportWord) == abi.ReportWord.WARPS, "what follows belongs to the warps"


def test_a_report_names_who_is_furthest_behind_first() -> None:
    words = [0] * abi.REPORT_WORDS
    words[abi.ReportWord.VALID], words[abi.ReportWord.SM] = 1, 77
    places = {0: (2, 500, abi.Wait.INPUT, 3), 1: (2, 499, abi.Wait.RING_FULL, 5), 2: (1, 600, abi.Wait.TOKEN, 0)}
    for warp, (step, instruction, wait, index) in places.items():
        words[abi.ReportWord.WARPS + 2 * warp] = step << 16 | instruction
        words[abi.ReportWord.WARPS + 2 * warp + 1] = wait << 24 | index
    sm, records = abi.decode_report(words, 3)
    assert sm == 77
    assert [(r.warp, r.step, r.instruction, r.wait, r.index) for r in records] == [
        (warp, *places[warp]) for warp in (2, 1, 0)
    ]


def test_epochs_find_the_same_slot_when_they_wrap() -> None:
    assert abi.HOST_TOKENS & (abi.HOST_TOKENS - 1) == 0


def test_the_parameter_fits_a_launch() -> None:
    """4 KB is what every driver that jitmk supports takes."""
    assert ctypes.sizeof(abi.KernelParams) <= 4096
