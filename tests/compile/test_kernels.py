"""Kernels compile for every architecture, with every compiler and of every family, and what comes out fits an SM."""

from __future__ import annotations

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import BuildOptions, render
from jitmk.codegen.stream import render_stream
from jitmk.engine.step_programs import kernel_variants
from jitmk.errors import CodegenError
from jitmk.jit import build
from jitmk.model.families import spec_from_config
from jitmk.program.isa import Opcode
from tests.compile.kernels import ARCHS, BY_NAME, CASES, MAX_REGISTERS, Shape, compile_shape
from tests.support.checkpoints import TINY_OF
from tests.support.compilers import COMPILERS, require_compiler
from tests.support.op_kernels import KERNELS, barrier_kernel
from tests.support.shapes import llama
from tests.support.tiny import tiny_spec


@pytest.mark.parametrize("compiler_name", COMPILERS)
@pytest.mark.parametrize(("name", "arch_name"), CASES)
def test_kernel_compiles_and_fits(name: str, arch_name: str, compiler_name: str) -> None:
    arch, shape = GpuArch.parse(arch_name), BY_NAME[name]
    kernel = compile_shape(shape, arch, require_compiler(compiler_name, arch))
    assert kernel.cubin[:4] == b"\x7fELF" and kernel.arch == arch_name
    info = kernel.info
    assert info.registers is not None and info.spills is not None, kernel.log
    assert info.registers <= MAX_REGISTERS
    assert info.shared == 0, "all shared memory is dynamic: static would come on top of what the launch asks for"
    assert info.spills <= shape.spilled_bytes, kernel.log


@pytest.mark.parametrize("arch_name", ARCHS)
def test_opcodes_that_no_llama_has_compile(arch_name: str) -> None:
    """With the cases above, every opcode compiles for every architecture."""
    arch, shape = GpuArch.parse(arch_name), BY_NAME["1b"]
    kernels = (barrier_kernel(arch.sm_count), *KERNELS.values())
    usual = {variant.opcode for variant in kernel_variants(shape.spec)}
    others = {v.opcode: v for kernel in kernels for v in kernel.variants if v.opcode not in usual}
    assert usual | others.keys() == set(Opcode)
    source = render(tuple(others.values()), tiny_spec(), arch)
    kernel = build(source, arch, compiler=require_compiler("nvrtc", arch))
    assert kernel.info.registers is not None and kernel.info.registers <= MAX_REGISTERS


@pytest.mark.parametrize("family", TINY_OF)
def test_a_small_model_of_every_family_compiles(family: str) -> None:
    config = TINY_OF[family] | {"model_type": family}
    spec, arch = spec_from_config(config).spec, GpuArch.parse("sm_90a")
    info = compile_shape(Shape(family, spec), arch, require_compiler("nvrtc", arch)).info
    assert info.registers is not None and info.registers <= MAX_REGISTERS
    assert info.spills is not None and info.spills <= Shape.spilled_bytes


@pytest.mark.parametrize("compiler_name", COMPILERS)
@pytest.mark.parametrize("options", [BuildOptions(trace=True), BuildOptions(race_check=True)])
def test_kernels_for_looking_closely_compile(options: BuildOptions, compiler_name: str) -> None:
    arch = GpuArch.parse("sm_90a")
    kernel = compile_shape(BY_NAME["tiny"], arch, require_compiler(compiler_name, arch), options)
    assert kernel.info.registers is not None and kernel.info.registers <= MAX_REGISTERS


@pytest.mark.parametrize("compiler_name", COMPILERS)
@pytest.mark.parametrize("arch_name", ARCHS)
def test_the_stream_kernel_compiles(arch_name: str, compiler_name: str) -> None:
    arch = GpuArch.parse(arch_name)
    kernel = build(render_stream(arch), arch, compiler=require_compiler(compiler_name, arch))
    assert kernel.info.spills == 0


# Around the edge of what 99 KB of shared memory hold: what the renderer lets through, the compiler must accept too.
_NEAR_THE_EDGE = {
    "70b": llama(8192, 28672, 1, 64, 8, 128),
    "head-256-group-4": llama(512, 640, 1, 4, 1, 256, vocab_size=1000),
}
_BEYOND_THE_EDGE = {
    "405b": llama(16384, 53248, 1, 128, 8, 128),
    "intermediate-29696": llama(8192, 29696, 1, 64, 8, 128),
}


@pytest.mark.parametrize("name", _NEAR_THE_EDGE)
def test_what_just_fits_small_shared_memory_compiles(name: str) -> None:
    arch = GpuArch.parse("sm_120a")
    compile_shape(Shape(name, _NEAR_THE_EDGE[name]), arch, require_compiler("nvrtc", arch))


@pytest.mark.parametrize("name", _BEYOND_THE_EDGE)
def test_what_does_not_fit_small_shared_memory_is_refused(name: str) -> None:
    arch = GpuArch.parse("sm_120a")
    with pytest.raises(CodegenError, match="shared memory"):
        compile_shape(Shape(name, _BEYOND_THE_EDGE[name]), arch, require_compiler("nvrtc", arch))
