"""The kernels in which the GPU tests run opcodes on their own compile here, without a GPU."""

from __future__ import annotations

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.jit import build
from tests.compile.kernels import MAX_REGISTERS
from tests.support.compilers import require_compiler
from tests.support.op_kernels import KERNELS


@pytest.mark.parametrize("name", KERNELS)
def test_compiles(name: str) -> None:
    arch, kernel = GpuArch.parse("sm_90a"), KERNELS[name]
    source = render(kernel.variants, kernel.spec, arch)
    compiled = build(source, arch, compiler=require_compiler("nvrtc", arch))
    assert compiled.info.registers is not None and compiled.info.registers <= MAX_REGISTERS
