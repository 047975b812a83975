"""The cache key: everything that a cubin depends on, and nothing else (no driver, no paths, no time)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import jitmk
from jitmk.arch import GpuArch
from jitmk.jit.compiler import Compiler

# Raise this when the meaning of the key or the layout of an entry changes.
SCHEMA = 1


def kernel_key(source: str, arch: GpuArch, options: Sequence[str], compiler: Compiler) -> str:
    """SHA-256, in 64 hex digits, of what ``compiler`` makes a cubin from.

    ``source`` must be flat: what it would include is not part of the key.
    """
    parts = {
        "schema": SCHEMA,
        "jitmk": jitmk.__version__,
        "source": hashlib.sha256(source.encode()).hexdigest(),
        "arch": arch.name,
        # The first word of the command is where the compiler lies, which does not matter.
        "options": list(compiler.command(arch, options)[1:]),
        "backend": compiler.name,
        "build": compiler.build,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
