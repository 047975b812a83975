"""What every CUDA compiler of jitmk offers: one flat source in, one cubin for one exact target out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jitmk.arch import GpuArch
from jitmk.errors import CompileError, CompilerNotFoundError

# First CUDA version whose compilers know the target (CUDA toolkit release notes).
FIRST_CUDA: dict[str, tuple[int, int]] = {
    "sm_90a": (12, 0),
    "sm_100a": (12, 8),
    "sm_103a": (12, 9),
    "sm_120a": (12, 8),
}

# What an option must not say: the target is an argument of its own, and the source is all that there is to compile,
# because only then is the cache key complete.
_FORBIDDEN_OPTION = re.compile(
    r"-I|--include-path|-isystem|-include|--pre-include|-arch|--gpu-|-gencode|--generate-code"
)


@dataclass(frozen=True)
class KernelInfo:
    """What ptxas says of the kernels of one cubin; None where it said nothing.

    Attributes:
        registers: 32-bit registers a thread, the most of any kernel in the source.
        shared: static shared memory a block, in bytes, the most of any kernel.
        spills: bytes of spill stores and loads, summed over all functions.
        stack: bytes of stack frame a thread, the most of any function.
    """

    registers: int | None = None
    shared: int | None = None
    spills: int | None = None
    stack: int | None = None

    def __str__(self) -> str:
        def show(value: int | None) -> str:
            return "?" if value is None else str(value)

        return f"{show(self.registers)} registers, {show(self.shared)} bytes shared, {show(self.spills)} bytes spilled"


@dataclass(frozen=True)
class CompileResult:
    """A finished compile: the cubin, the compiler's log, what ptxas reported, seconds taken and the command."""

    cubin: bytes
    log: str
    info: KernelInfo
    seconds: float
    command: tuple[str, ...]

    @property
    def registers(self) -> int | None:
        """Registers a thread, see :class:`KernelInfo`."""
        return self.info.registers

    @property
    def shared(self) -> int | None:
        """Static shared memory a block in bytes, see :class:`KernelInfo`."""
        return self.info.shared

    @property
    def spills(self) -> int | None:
        """Bytes of spill stores and loads, see :class:`KernelInfo`."""
        return self.info.spills


class Compiler(Protocol):
    """A CUDA compiler. ``name`` is ``"nvrtc"`` or ``"nvcc"``; ``build`` identifies the very build, for the key."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> tuple[int, int]:
        """CUDA version of the compiler, such as (12, 9)."""

    @property
    def build(self) -> str: ...

    @property
    def location(self) -> str:
        """Where it was found, for people to read."""

    def command(self, arch: GpuArch, options: Sequence[str] = ()) -> tuple[str, ...]:
        """The full command for ``arch``: what is printed, stored, and part of the cache key but for the program."""

    def compile(self, source: str, arch: GpuArch, options: Sequence[str] = ()) -> CompileResult:
        """Compile ``source``, which includes nothing, to a cubin; raises CompileError where it is refused."""


def common_options(arch: GpuArch, options: Sequence[str]) -> tuple[str, ...]:
    """The options that NVRTC and NVCC share, in order, followed by ``options``.

    Raises:
        CompileError: one of ``options`` names a target, a file to include or a folder to search.
    """
    for option in options:
        if _FORBIDDEN_OPTION.match(option):
            raise CompileError(
                f"compiler option {option!r} is not allowed: sources are flat and include nothing, "
                "and the target is given by the architecture"
            )
    return (f"--gpu-architecture={arch.name}", "--std=c++17", "--ptxas-options=-v", *options)


def supports(compiler: Compiler, arch: GpuArch) -> bool:
    """Whether this version of the compiler knows the target."""
    return compiler.version >= FIRST_CUDA[arch.name]


def require_support(compiler: Compiler, arch: GpuArch) -> None:
    """Raise CompilerNotFoundError where the compiler is too old for the target."""
    if not supports(compiler, arch):
        need = ".".join(map(str, FIRST_CUDA[arch.name]))
        have = ".".join(map(str, compiler.version))
        raise CompilerNotFoundError(
            f"{compiler.name} {have} at {compiler.location} cannot compile for {arch.name}, which needs CUDA {need} or "
            "newer; install a newer one, or choose another with JITMK_USE_NVRTC, JITMK_NVCC or JITMK_NVRTC"
        )


def compile_error(compiler: Compiler, arch: GpuArch, log: str, command: Sequence[str]) -> CompileError:
    """The error for a refused source, with the lines of the log that matter most in its message."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    shown = (errors or lines)[:12]
    text = "\n".join(f"    {line}" for line in shown) or "    (the log is empty)"
    return CompileError(
        f"{compiler.name} {'.'.join(map(str, compiler.version))} could not compile the kernel for {arch.name}:\n{text}",
        log=log,
        command=command,
    )
