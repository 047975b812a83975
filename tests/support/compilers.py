"""The compilers of this machine, for tests that hold for each of them."""

from __future__ import annotations

import pytest

from jitmk.arch import GpuArch
from jitmk.errors import CompilerNotFoundError
from jitmk.jit import Compiler
from jitmk.jit.nvcc import NvccCompiler
from jitmk.jit.nvrtc import NvrtcCompiler
from jitmk.settings import get_settings

COMPILERS = ("nvrtc", "nvcc")


def require_compiler(name: str, arch: GpuArch) -> Compiler:
    """The compiler of that name. Skips the test where NVCC is missing or too old; NVRTC is a dependency, so never."""
    if name == "nvrtc":
        return NvrtcCompiler.find(get_settings())
    try:
        compiler = NvccCompiler.find(get_settings())
    except CompilerNotFoundError as error:
        pytest.skip(f"no NVCC: {error}")
    from jitmk.jit.compiler import supports

    if not supports(compiler, arch):
        pytest.skip(f"NVCC {compiler.version} does not know {arch.name}")
    return compiler
