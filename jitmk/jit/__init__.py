"""From flat CUDA source to a cubin: the compilers, and the cache of what they made. Needs no GPU and no torch.

``build`` is the entry point; everything else is there for tests, tools and callers that bring their own parts.
"""

from __future__ import annotations

from jitmk.jit.build import CompiledKernel, build
from jitmk.jit.cache import CacheWarning, KernelCache
from jitmk.jit.compiler import Compiler, CompileResult, KernelInfo
from jitmk.jit.select import select_compiler

__all__ = [
    "CacheWarning",
    "CompileResult",
    "CompiledKernel",
    "Compiler",
    "KernelCache",
    "KernelInfo",
    "build",
    "select_compiler",
]
