"""The kernels in which the GPU tests run opcodes on their own compile here, without a GPU."""

from __future__ import annotations

import pytest

from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.jit import build
from jitmk.program.isa import Opcode
from tests.compile.kernels import MAX_REGISTERS
from tests.support.compilers import require_compiler
from tests.support.op_kernels import KERNELS, barrier_kernel

# One of each sort; the others differ in shapes, and are compiled where they run.
NAMES = (
    "matvec-parts",
    "features-learned-positions",
    "embed-sample",
    "attention-64",
    "attention-features-256",
    "features-layer-post-norm",
    "features-parallel",
)


@pytest.mark.parametrize("name", NAMES)
def test_compiles(name: str) -> None:
    arch, kernel = GpuArch.parse("sm_90a"), KERNELS[name]
    source = render(kernel.variants, kernel.spec, arch)
    compiled = build(source, arch, compiler=require_compiler("nvrtc", arch))
    assert compiled.info.registers is not None and compiled.info.registers <= MAX_REGISTERS


def test_they_have_every_opcode() -> None:
    assert {v.opcode for name in NAMES for v in KERNELS[name].variants} == set(Opcode) - {Opcode.BARRIER, Opcode.NO_OP}


def test_the_kernel_with_barriers_compiles() -> None:
    arch, kernel = GpuArch.parse("sm_90a"), barrier_kernel(132)
    build(render(kernel.variants, kernel.spec, arch), arch, compiler=require_compiler("nvrtc", arch))
