"""A cache of its own and a compiler that counts, for each test of the JIT."""

from __future__ import annotations

from pathlib import Path

import pytest

from jitmk.jit.cache import KernelCache
from tests.unit.jit.sources import PretendCompiler


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "cache", max_bytes=2**30)


@pytest.fixture
def pretend(tmp_path: Path) -> PretendCompiler:
    return PretendCompiler(tmp_path / "compiles.txt")
