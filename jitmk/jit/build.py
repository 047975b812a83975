"""``build``: source in, cubin out, from the cache where it can be."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jitmk.arch import GpuArch
from jitmk.errors import CompileError
from jitmk.jit import entry as entries
from jitmk.jit.cache import CachedKernel, KernelCache
from jitmk.jit.compiler import Compiler, KernelInfo
from jitmk.jit.key import kernel_key
from jitmk.jit.select import select_compiler
from jitmk.settings import Settings, get_settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompiledKernel:
    """A cubin, ready to load.

    Attributes:
        cubin: the bytes that the driver loads.
        arch: exact target, such as ``"sm_90a"``.
        info: registers, shared memory, spills.
        key: its key in the cache, 64 hex digits.
        from_cache: whether it was read from the cache rather than compiled now.
        path: its folder in the cache, or None where it could not be kept.
        compiler: ``"nvrtc"`` or ``"nvcc"``; build: that compiler's very build.
        command: the command that made it; log: what the compiler wrote; seconds: how long the compile took.
    """

    cubin: bytes
    arch: str
    info: KernelInfo
    key: str
    from_cache: bool
    path: Path | None
    compiler: str
    build: str
    command: tuple[str, ...]
    log: str
    seconds: float


def build(
    source: str,
    arch: GpuArch,
    options: Sequence[str] = (),
    *,
    settings: Settings | None = None,
    compiler: Compiler | None = None,
    cache: KernelCache | None = None,
) -> CompiledKernel:
    """Compile a flat CUDA source to a cubin for ``arch``, or take it from the cache.

    Args:
        source: CUDA C++ that includes nothing.
        arch: the exact target.
        options: further compiler options, in order; part of the key.
        settings: as :func:`jitmk.settings.get_settings` reads them when None.
        compiler: as the settings choose it when None.
        cache: the cache that the settings name when None.

    Raises:
        CompileError: the compiler refused the source, which is saved at the error's ``source_path``.
        CompilerNotFoundError: there is no compiler, or none that knows ``arch``.
        CacheError: the cache belongs to someone else, or others may write to it.
    """
    settings = get_settings() if settings is None else settings
    compiler = select_compiler(arch, settings) if compiler is None else compiler
    cache = KernelCache.from_settings(settings) if cache is None else cache
    options = (*options, "--generate-line-info") if settings.debug else tuple(options)
    key = kernel_key(source, arch, options, compiler)
    found = cache.load(key)
    if found is None:
        with cache.lock(key):
            # Whoever held the lock before may have built the same kernel.
            found = cache.load(key)
            if found is None:
                return _compile(source, arch, options, settings, compiler, cache, key)
    _log.info("kernel %s for %s from the cache: %s", key[:16], arch.name, found.meta.info)
    return _from_cache(found)


def _compile(
    source: str,
    arch: GpuArch,
    options: tuple[str, ...],
    settings: Settings,
    compiler: Compiler,
    cache: KernelCache,
    key: str,
) -> CompiledKernel:
    """Compile and keep what comes of it."""
    if settings.print_compiler_command:
        print(f"jitmk: {shlex.join(compiler.command(arch, options))}", file=sys.stderr, flush=True)
    try:
        result = compiler.compile(source, arch, options)
    except CompileError as error:
        raise _with_source(error, cache, key, source) from None
    _log.info("kernel %s for %s compiled in %.2f s: %s", key[:16], arch.name, result.seconds, result.info)
    if settings.ptxas_verbose:
        print(f"jitmk: kernel {key[:16]} for {arch.name}: {result.info}", file=sys.stderr)
        print(result.log.rstrip(), file=sys.stderr, flush=True)
    files = entries.encode(
        key=key,
        arch=arch.name,
        compiler=compiler.name,
        build=compiler.build,
        command=result.command,
        seconds=result.seconds,
        info=result.info,
        cubin=result.cubin,
        source=source,
        log=result.log,
    )
    return CompiledKernel(
        cubin=result.cubin,
        arch=arch.name,
        info=result.info,
        key=key,
        from_cache=False,
        path=cache.store(key, files),
        compiler=compiler.name,
        build=compiler.build,
        command=result.command,
        log=result.log,
        seconds=result.seconds,
    )


def _from_cache(found: CachedKernel) -> CompiledKernel:
    meta = found.meta
    return CompiledKernel(
        cubin=found.cubin,
        arch=meta.arch,
        info=meta.info,
        key=meta.key,
        from_cache=True,
        path=found.path,
        compiler=meta.compiler,
        build=meta.build,
        command=meta.command,
        log=found.log,
        seconds=meta.seconds,
    )


def _with_source(error: CompileError, cache: KernelCache, key: str, source: str) -> CompileError:
    """The same error, with the path of the source that was refused: in the cache, else in a temporary folder."""
    path = cache.save_failure(key, source, error.log)
    if path is None:
        try:
            path = Path(tempfile.mkdtemp(prefix="jitmk-failed-")) / entries.SOURCE
            path.write_text(source, encoding="utf-8")
        except OSError:
            path = None
    where = f"the source is saved at {path}" if path else "the source could not be saved"
    return CompileError(
        f"{error}\n{where}; the command was: {shlex.join(error.command)}",
        log=error.log,
        command=error.command,
        source_path=path,
    )
