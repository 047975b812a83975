"""NVRTC, NVIDIA's compiler as a library, through ctypes.

Several libnvrtc may be installed beside each other (torch brings one, jitmk another), and which of them a binding
loads does not follow the binding's version. So jitmk chooses the file, loads that file, and asks it who it is.

Source: NVRTC documentation, https://docs.nvidia.com/cuda/nvrtc/
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
import logging
import re
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from jitmk.arch import GpuArch
from jitmk.errors import CompilerNotFoundError
from jitmk.jit.compiler import CompileResult, common_options, compile_error, require_support
from jitmk.jit.ptxas import parse_info
from jitmk.settings import Settings

_log = logging.getLogger(__name__)

_SUCCESS = 0
_OLDEST = (12, 0)
_NO_CACHE_SINCE = (12, 9)
# CUDA 12 first: its cubins load on older drivers than those of CUDA 13.
_WHEEL_LIBRARIES = ("cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13")
_SYSTEM_NAMES = ("libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so")
_BUILD = re.compile(r"Compiler Build ID: (\S+)\s*//\s*Cuda compilation tools, release \S+, (\S+)")


class NvrtcCompiler:
    """One libnvrtc. Use :meth:`find`, or :meth:`load` for a particular file."""

    name = "nvrtc"

    def __init__(self, library: _Library, location: str) -> None:
        self.location = location
        self._library = library
        self.version = library.version
        self.build = library.build

    @classmethod
    def find(cls, settings: Settings) -> NvrtcCompiler:
        """The libnvrtc of JITMK_NVRTC, else of the installed wheels, else the system's.

        Raises:
            CompilerNotFoundError: there is none, or the one that JITMK_NVRTC names cannot be used.
        """
        if settings.nvrtc is not None:
            return cls.load(str(settings.nvrtc))
        failures = []
        for location in _candidates(settings):
            try:
                return cls.load(location)
            except CompilerNotFoundError as error:
                failures.append(str(error))
        tried = "".join(f"\n    {failure}" for failure in failures)
        raise CompilerNotFoundError(
            "NVRTC was not found; pip install nvidia-cuda-nvrtc-cu12, or name a libnvrtc with JITMK_NVRTC" + tried
        )

    @classmethod
    def load(cls, location: str) -> NvrtcCompiler:
        """The libnvrtc at a path, or of a name that the system's loader knows."""
        compiler = cls(_load(location), location)
        _log.info("NVRTC %s: %s", compiler.location, compiler.build)
        return compiler

    def command(self, arch: GpuArch, options: Sequence[str] = ()) -> tuple[str, ...]:
        """The options handed to NVRTC, behind the path of the library and before the name of the source."""
        # Without this NVRTC keeps a cache of its own behind jitmk's back.
        no_cache = ("--no-cache",) if self.version >= _NO_CACHE_SINCE else ()
        return (self.location, *no_cache, *common_options(arch, options), "kernel.cu")

    def compile(self, source: str, arch: GpuArch, options: Sequence[str] = ()) -> CompileResult:
        """Compile ``source`` for ``arch``; raises CompileError with log and options where NVRTC refuses it."""
        require_support(self, arch)
        command = self.command(arch, options)
        started = time.perf_counter()
        status, log, cubin = self._library.compile(source, command[1:-1], "CUBIN")
        seconds = time.perf_counter() - started
        if status != _SUCCESS or not cubin:
            raise compile_error(self, arch, log or self._library.error_text(status), command)
        return CompileResult(cubin, log, parse_info(log), seconds, command)


class _Library:
    """The few calls of libnvrtc that jitmk needs, typed."""

    def __init__(self, library: ctypes.CDLL, location: str) -> None:
        program, size = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
        strings = ctypes.POINTER(ctypes.c_char_p)
        signatures: dict[str, list[object]] = {
            "nvrtcVersion": [ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)],
            "nvrtcCreateProgram": [
                ctypes.POINTER(program),
                ctypes.c_char_p,
                ctypes.c_char_p,
                ctypes.c_int,
                strings,
                strings,
            ],
            "nvrtcCompileProgram": [program, ctypes.c_int, strings],
            "nvrtcDestroyProgram": [ctypes.POINTER(program)],
        }
        for what in ("ProgramLog", "PTX", "CUBIN"):
            signatures[f"nvrtcGet{what}Size"] = [program, size]
            signatures[f"nvrtcGet{what}"] = [program, ctypes.c_char_p]
        for name, arguments in signatures.items():
            getattr(library, name).argtypes = arguments
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        self._calls = library
        self.version = self._ask_version()
        self.build = self._ask_build(location)

    def error_text(self, status: int) -> str:
        """NVRTC's name for a status."""
        text: bytes | None = self._calls.nvrtcGetErrorString(status)
        return (text or b"unknown error").decode("ascii", "replace")

    def compile(self, source: str, options: Sequence[str], output: str) -> tuple[int, str, bytes]:
        """Compile to ``output`` (``"PTX"`` or ``"CUBIN"``); returns status, log, and the output or nothing."""
        program = ctypes.c_void_p()
        status = self._calls.nvrtcCreateProgram(program, source.encode(), b"kernel.cu", 0, None, None)
        if status != _SUCCESS:
            return status, self.error_text(status), b""
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._calls.nvrtcCompileProgram(program, len(options), arguments)
            log = self._fetch(program, "ProgramLog").rstrip(b"\0").decode("utf-8", "replace")
            return status, log, self._fetch(program, output) if status == _SUCCESS else b""
        finally:
            self._calls.nvrtcDestroyProgram(program)

    def _fetch(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        if getattr(self._calls, f"nvrtcGet{what}Size")(program, size) != _SUCCESS or size.value == 0:
            return b""
        buffer = ctypes.create_string_buffer(size.value)
        if getattr(self._calls, f"nvrtcGet{what}")(program, buffer) != _SUCCESS:
            return b""
        return buffer.raw

    def _ask_version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        status = self._calls.nvrtcVersion(major, minor)
        return (major.value, minor.value) if status == _SUCCESS else (0, 0)

    def _ask_build(self, location: str) -> str:
        """The compiler's own name for its build; nvrtcVersion knows only major and minor.

        NVRTC writes it at the top of the PTX that it generates, and an empty program takes milliseconds. A library
        that cannot even do that, for want of its parts, is found out here.
        """
        status, log, ptx = self.compile("", ("--gpu-architecture=compute_90",), "PTX")
        if status != _SUCCESS:
            raise CompilerNotFoundError(f"{location} cannot compile: {log.strip() or self.error_text(status)}")
        found = _BUILD.search(ptx.decode("ascii", "replace"))
        if found:
            return f"{found[2]} {found[1]}"
        path = Path(location)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "unknown"
        return f"V{self.version[0]}.{self.version[1]} {digest}"


@cache
def _load(location: str) -> _Library:
    """The library at ``location``, checked to be an NVRTC of the version that its file name says."""
    try:
        # NVRTC opens its builtins by bare name, and not every build of it knows to look beside itself.
        for builtins in sorted(Path(location).parent.glob("libnvrtc-builtins.so*")) if "/" in location else ():
            ctypes.CDLL(str(builtins))
        library = _Library(ctypes.CDLL(location), location)
    except (OSError, AttributeError) as error:
        raise CompilerNotFoundError(f"{location} cannot be loaded as NVRTC: {error}") from error
    shown = ".".join(map(str, library.version))
    named = re.search(r"\.so\.(\d+)", Path(location).name)
    if named and int(named[1]) != library.version[0]:
        raise CompilerNotFoundError(f"{location} says that it is NVRTC {shown}, which its name contradicts")
    if library.version < _OLDEST:
        raise CompilerNotFoundError(f"{location} is NVRTC {shown}, but jitmk needs 12.0 or newer")
    return library


def _candidates(settings: Settings) -> Iterator[str]:
    """Where a libnvrtc may be, best first."""
    # The wheels of NVIDIA share a namespace package, which is found without importing anything.
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        yield from _existing(Path(folder), _WHEEL_LIBRARIES)
    for home in (settings.cuda_home, Path("/usr/local/cuda")):
        if home is not None:
            yield from _existing(home / "lib64", _SYSTEM_NAMES)
    yield from _SYSTEM_NAMES


def _existing(folder: Path, names: Sequence[str]) -> Iterator[str]:
    return (str(folder / name) for name in names if (folder / name).is_file())
