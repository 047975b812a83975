"""Chooses the compiler: JITMK_USE_NVRTC decides, else NVCC where there is a usable one, else NVRTC."""

from __future__ import annotations

import logging

from jitmk.arch import GpuArch
from jitmk.errors import CompilerNotFoundError
from jitmk.jit.compiler import Compiler, require_support
from jitmk.jit.nvcc import NvccCompiler
from jitmk.jit.nvrtc import NvrtcCompiler
from jitmk.settings import Settings

_log = logging.getLogger(__name__)


def select_compiler(arch: GpuArch, settings: Settings) -> Compiler:
    """The compiler for ``arch`` that the settings ask for.

    Raises:
        CompilerNotFoundError: it is not on this machine, or too old for ``arch``.
    """
    compiler: Compiler
    if settings.use_nvrtc is not True:
        try:
            compiler = NvccCompiler.find(settings)
            require_support(compiler, arch)
            return compiler
        except CompilerNotFoundError as error:
            # An NVCC that was asked for by name is not passed over in silence.
            if settings.use_nvrtc is False or settings.nvcc is not None:
                raise
            _log.debug("no NVCC, so NVRTC: %s", error)
    compiler = NvrtcCompiler.find(settings)
    require_support(compiler, arch)
    return compiler
