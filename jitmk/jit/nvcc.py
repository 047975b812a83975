"""NVCC as a subprocess: a temporary folder in, a cubin out."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jitmk.arch import GpuArch
from jitmk.errors import CompileError, CompilerNotFoundError
from jitmk.jit.compiler import CompileResult, common_options, compile_error, require_support
from jitmk.jit.ptxas import parse_info
from jitmk.settings import Settings, compiler_environment

_log = logging.getLogger(__name__)

_COMPILE_SECONDS = 900.0
_VERSION_SECONDS = 30.0
_SYSTEM_NVCC = Path("/usr/local/cuda/bin/nvcc")


@dataclass(frozen=True)
class NvccCompiler:
    """One NVCC. Use :meth:`find`; the fields are what its ``--version`` says."""

    path: Path
    version: tuple[int, int]
    build: str

    name = "nvcc"

    @property
    def location(self) -> str:
        """Path of the program."""
        return str(self.path)

    @classmethod
    def find(cls, settings: Settings) -> NvccCompiler:
        """The NVCC of JITMK_NVCC, else of PATH, CUDA_HOME or /usr/local/cuda.

        Raises:
            CompilerNotFoundError: there is none, it does not run, or it has no host compiler to preprocess with.
        """
        path = _locate(settings)
        environment = compiler_environment()
        if "NVCC_CCBIN" not in environment and shutil.which("gcc", path=settings.search_path) is None:
            raise CompilerNotFoundError(
                f"{path} needs gcc to preprocess, but there is none in PATH; install gcc, set NVCC_CCBIN, "
                "or set JITMK_USE_NVRTC=1 to compile without NVCC"
            )
        compiler = cls(path, *_identify(path))
        _log.info("NVCC %s: %s", compiler.path, compiler.build)
        return compiler

    def command(self, arch: GpuArch, options: Sequence[str] = ()) -> tuple[str, ...]:
        """The command line; the file names are relative to the folder that holds the source."""
        return (self.location, "-cubin", *common_options(arch, options), "-o", "kernel.cubin", "kernel.cu")

    def compile(self, source: str, arch: GpuArch, options: Sequence[str] = ()) -> CompileResult:
        """Compile ``source`` for ``arch``; raises CompileError with log and command where NVCC refuses it."""
        require_support(self, arch)
        command = self.command(arch, options)
        with tempfile.TemporaryDirectory(prefix="jitmk-nvcc-") as folder:
            (Path(folder) / "kernel.cu").write_text(source, encoding="utf-8")
            started = time.perf_counter()
            status, log = _run(command, folder)
            seconds = time.perf_counter() - started
            cubin_path = Path(folder) / "kernel.cubin"
            cubin = cubin_path.read_bytes() if cubin_path.is_file() else b""
        if status != 0 or not cubin:
            raise compile_error(self, arch, log or f"nvcc ended with status {status} and wrote nothing", command)
        return CompileResult(cubin, log, parse_info(log), seconds, command)


def _locate(settings: Settings) -> Path:
    if settings.nvcc is not None:
        return settings.nvcc
    found = shutil.which("nvcc", path=settings.search_path)
    candidates = [Path(found)] if found else []
    if settings.cuda_home is not None:
        candidates.append(settings.cuda_home / "bin" / "nvcc")
    candidates.append(_SYSTEM_NVCC)
    for candidate in candidates:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise CompilerNotFoundError(
        "NVCC was not found in PATH, in CUDA_HOME or in /usr/local/cuda; install the CUDA toolkit, name it with "
        "JITMK_NVCC, or set JITMK_USE_NVRTC=1 to compile without it"
    )


def _identify(path: Path) -> tuple[tuple[int, int], str]:
    """CUDA version and build of an NVCC, as its ``--version`` says them."""
    try:
        answer = subprocess.run(
            [str(path), "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_SECONDS,
            stdin=subprocess.DEVNULL,
            env=compiler_environment(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerNotFoundError(
            f"{path} --version does not run: {error}; set JITMK_NVCC to a working NVCC"
        ) from error
    release = re.search(r"release (\d+)\.(\d+), (\S+)", answer.stdout)
    if answer.returncode != 0 or release is None:
        said = (answer.stdout + answer.stderr).strip()[:200]
        raise CompilerNotFoundError(f"{path} --version says nothing that NVCC would say ({said!r}); check JITMK_NVCC")
    build = re.search(r"^Build (\S+)", answer.stdout, re.MULTILINE)
    return (int(release[1]), int(release[2])), f"{release[3]} {build[1] if build else ''}".strip()


def _run(command: Sequence[str], folder: str) -> tuple[int, str]:
    """Run the command in ``folder``; returns its status and output.

    NVCC starts further programs. They share a process group of their own, so that none outlives a timeout or Ctrl-C.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**compiler_environment(), "TMPDIR": folder},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_COMPILE_SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise CompileError(f"nvcc did not finish within {_COMPILE_SECONDS:.0f} s", command=command) from error
        raise
    return process.returncode, output
