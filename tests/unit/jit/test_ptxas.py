"""Logs of ptxas in the shapes that NVCC and NVRTC give them."""

from __future__ import annotations

import pytest

from jitmk.jit.compiler import KernelInfo
from jitmk.jit.ptxas import parse_info

NVCC_LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    256 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 256 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 25.550 ms
"""
NVRTC_LOG = NVCC_LOG.replace("    256 bytes stack", "ptxas         .     256 bytes stack")
OLD_LOG = """ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 256+16 bytes smem, 360 bytes cmem[0]
"""
TWO_KERNELS = NVCC_LOG + OLD_LOG


@pytest.mark.parametrize(
    ("log", "info"),
    [
        (NVCC_LOG, KernelInfo(registers=32, shared=1024, spills=20, stack=256)),
        (NVRTC_LOG, KernelInfo(registers=32, shared=1024, spills=20, stack=256)),
        (NVCC_LOG.replace("\n", "\r\n"), KernelInfo(registers=32, shared=1024, spills=20, stack=256)),
        (OLD_LOG, KernelInfo(registers=8, shared=272, spills=0, stack=0)),
        (TWO_KERNELS, KernelInfo(registers=32, shared=1024, spills=20, stack=256)),
        ("ptxas info    : Used 10 registers, used 0 barriers\n", KernelInfo(registers=10, shared=0)),
        ("kernel.cu(3): warning #177-D: variable was declared but never referenced\n", KernelInfo()),
        ("", KernelInfo()),
    ],
)
def test_parse(log: str, info: KernelInfo) -> None:
    assert parse_info(log) == info


def test_shown_for_people() -> None:
    assert str(parse_info(NVCC_LOG)) == "32 registers, 1024 bytes shared, 20 bytes spilled"
    assert str(KernelInfo()) == "? registers, ? bytes shared, ? bytes spilled"
