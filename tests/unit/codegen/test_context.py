"""The numbers behind a kernel: what fits, what does not, and literals that lose nothing."""

from __future__ import annotations

import re
import struct

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.codegen.context import MIN_RING_CHUNKS, render_context
from jitmk.engine.step_programs import kernel_variants
from jitmk.errors import CodegenError
from jitmk.model.spec import ModelSpec
from jitmk.program.isa import Opcode
from jitmk.program.packing import CONSUMER_WARPS
from tests.support.shapes import LLAMA_1B, LLAMA_405B
from tests.support.tiny import tiny_spec


def test_a_model_too_wide_for_the_shared_memory_is_refused_with_the_numbers() -> None:
    arch = GpuArch.parse("sm_120a")
    with pytest.raises(CodegenError) as caught:
        render(kernel_variants(LLAMA_405B), LLAMA_405B, arch)
    message = str(caught.value)
    for needed in (LLAMA_405B.intermediate_size, arch.shared_bytes_per_block, "sm_120a", "sm_90a", "another backend"):
        assert str(needed) in message


@pytest.mark.parametrize("arch_name", GpuArch.supported())
def test_the_1b_fits_everywhere(arch_name: str) -> None:
    arch = GpuArch.parse(arch_name)
    context = render_context(kernel_variants(LLAMA_1B), LLAMA_1B, arch)
    left = arch.shared_bytes_per_block - CONSUMER_WARPS * context.slice_bytes
    assert context.arch == arch_name and left > MIN_RING_CHUNKS * context.chunk_bytes


def test_the_405b_fits_where_shared_memory_is_large() -> None:
    assert render_context(kernel_variants(LLAMA_405B), LLAMA_405B, GpuArch.parse("sm_90a")).slice_bytes > 0


def _floats(spec: ModelSpec) -> tuple[str, str]:
    context = render_context(kernel_variants(spec), spec, GpuArch.parse("sm_90a"))
    return context.norm_eps, context.score_scale


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 3.4028234e38, 1.17549435e-38, 0.1])
def test_float_literals_keep_every_bit(eps: float) -> None:
    literal, _ = _floats(tiny_spec(norm_eps=eps))
    assert re.fullmatch(r"\d\.\d+e[+-]\d+f", literal)
    assert struct.pack("f", float(literal[:-1])) == struct.pack("f", eps)


def test_scores_are_in_units_of_log2() -> None:
    _, scale = _floats(tiny_spec(head_dim=64))
    assert float(scale[:-1]) == pytest.approx(64**-0.5 * 1.4426950408889634, rel=1e-7)


def test_an_opcode_that_no_program_uses_is_not_in_the_kernel() -> None:
    spec = tiny_spec()
    variants = [v for v in kernel_variants(spec) if v.opcode is not Opcode.ATTENTION_REDUCE]
    source = render(variants, spec, GpuArch.parse("sm_90a"))
    assert "using Shape = vm::AttentionReduce<" not in source
    assert "using Shape = vm::AttentionReduce<" in render(kernel_variants(spec), spec, GpuArch.parse("sm_90a"))


def test_variants_keep_their_index() -> None:
    """An instruction names its code by index: the kernel's switch must number as the programs do."""
    variants = kernel_variants(LLAMA_1B)
    context = render_context(variants, LLAMA_1B, GpuArch.parse("sm_90a"))
    assert [(op.index, op.name, op.opcode) for op in context.ops] == [
        (i, v.name, v.opcode) for i, v in enumerate(variants)
    ]
