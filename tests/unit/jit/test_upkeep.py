"""Limits, statistics, verification and clearing, which leaves alone what is not jitmk's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jitmk.arch import GpuArch
from jitmk.errors import CompileError
from jitmk.jit import upkeep
from jitmk.jit.build import CompiledKernel, build
from jitmk.jit.cache import KernelCache
from jitmk.settings import Settings
from tests.unit.jit.sources import PretendCompiler

DAY = 86400


def make(cache: KernelCache, compiler: PretendCompiler, source: str = "source") -> CompiledKernel:
    return build(source, GpuArch.parse("sm_90a"), settings=Settings(), compiler=compiler, cache=cache)


def age(kernel: CompiledKernel, days: float) -> None:
    assert kernel.path is not None
    then = time.time() - days * DAY
    os.utime(kernel.path / "entry.json", (then, then))


def in_cache(cache: KernelCache, kernel: CompiledKernel) -> bool:
    return cache.load(kernel.key) is not None


def test_the_least_recently_used_go_first(cache: KernelCache, pretend: PretendCompiler) -> None:
    one, two, three = (make(cache, pretend, source) for source in ("one", "two", "three"))
    for days, kernel in ((3, two), (2, one), (1, three)):
        age(kernel, days)
    cache.max_bytes = upkeep.stats(cache).total_bytes + 100
    four = make(cache, pretend, "four")
    assert [in_cache(cache, kernel) for kernel in (one, two, three, four)] == [True, False, True, True]
    assert upkeep.stats(cache).total_bytes <= cache.max_bytes


def test_what_is_broken_goes_before_what_works(cache: KernelCache, pretend: PretendCompiler) -> None:
    with pytest.raises(CompileError):
        make(cache, pretend, "no_such_name" * 200)
    one = make(cache, pretend, "one")
    age(one, 30)
    cache.max_bytes = upkeep.stats(cache).total_bytes
    two = make(cache, pretend, "two")
    assert in_cache(cache, one)
    assert in_cache(cache, two)
    assert upkeep.stats(cache).counts["failed"] == 0


def test_no_room_for_anything_means_no_cache(cache: KernelCache, pretend: PretendCompiler) -> None:
    cache.max_bytes = 0
    assert make(cache, pretend).path is None
    assert not make(cache, pretend).from_cache
    assert upkeep.items(cache) == []


def test_leftovers_of_crashes_are_removed_once_they_are_old(cache: KernelCache, pretend: PretendCompiler) -> None:
    make(cache, pretend)
    old, new = cache.kernels / ".tmp-0123456789abcdef", cache.kernels / ".tmp-fedcba9876543210"
    for folder in (old, new):
        folder.mkdir()
        (folder / "kernel.cubin").write_bytes(b"half")
    then = time.time() - DAY
    os.utime(old, (then, then))
    make(cache, pretend, "another")
    assert not old.exists()
    assert new.exists()


def test_stats_and_listing(cache: KernelCache, pretend: PretendCompiler) -> None:
    one, two = make(cache, pretend, "one"), make(cache, pretend, "two")
    age(two, 1)
    stats = upkeep.stats(cache)
    assert stats.counts == {"kernel": 2, "tuning": 0, "quarantine": 0, "failed": 0, "temporary": 0}
    assert stats.total_bytes == sum(path.stat().st_size for path in cache.kernels.rglob("*") if path.is_file())
    listed = upkeep.kernels(cache)
    assert [meta.key for _, meta in listed if meta] == [one.key, two.key]
    assert two.path is not None
    (two.path / "entry.json").write_text("garbage")
    assert [meta is None for item, meta in upkeep.kernels(cache) if item.path == two.path] == [True]


@pytest.mark.parametrize("name", ["kernel.cubin", "kernel.cu", "compile.log", "entry.json"])
def test_verify_reads_every_byte(cache: KernelCache, pretend: PretendCompiler, name: str) -> None:
    good, bad = make(cache, pretend, "good"), make(cache, pretend, "bad")
    assert bad.path is not None
    data = bytearray((bad.path / name).read_bytes())
    data[-2] ^= 4
    (bad.path / name).write_bytes(data)
    verdicts = dict(upkeep.verify(cache))
    assert good.path is not None
    assert verdicts[good.path] is None
    assert name in str(verdicts[bad.path])


def test_clear_empties_the_cache(cache: KernelCache, pretend: PretendCompiler) -> None:
    make(cache, pretend, "one")
    make(cache, pretend, "two")
    with pytest.raises(CompileError):
        make(cache, pretend, "no_such_name")
    result = upkeep.clear(cache)
    assert result.removed == 3
    assert result.left == ()
    assert not cache.root.exists()
    assert not make(cache, pretend, "one").from_cache


def test_clear_by_age(cache: KernelCache, pretend: PretendCompiler) -> None:
    old, new = make(cache, pretend, "old"), make(cache, pretend, "new")
    age(old, 10)
    assert upkeep.clear(cache, older_than_days=5).removed == 1
    assert not in_cache(cache, old)
    assert in_cache(cache, new)
    assert upkeep.clear(cache, older_than_days=0).removed == 1


def test_clear_removes_damaged_entries_too(cache: KernelCache, pretend: PretendCompiler) -> None:
    for name in ("kernel.cubin", "entry.json"):
        kernel = make(cache, pretend, name)
        assert kernel.path is not None
        (kernel.path / name).unlink()
    assert upkeep.clear(cache).removed == 2
    assert not cache.root.exists()


def test_clear_leaves_foreign_files_alone(cache: KernelCache, pretend: PretendCompiler, tmp_path: Path) -> None:
    kernel = make(cache, pretend)
    assert kernel.path is not None
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    foreign = {
        cache.root / "notes.txt": "keep",
        cache.root / "tuning" / "result.json": "{}",
        cache.kernels / "notes.txt": "keep",
        cache.kernels / "my-kernels" / "kernel.cubin": "keep",
        cache.kernels / ("a" * 64) / "thesis.tex": "keep",
        cache.kernels / ("b" * 64) / "entry.json": '{"format": "something else"}',
        cache.kernels / ("c" * 64) / "kernel.cubin" / "nested": "keep",
        cache.root / "locks" / "important.lock": "keep",
    }
    for path, text in foreign.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (cache.kernels / ("d" * 64)).symlink_to(outside)
    (cache.kernels / ".tmp-0123456789abcdef").symlink_to(outside)

    result = upkeep.clear(cache)
    assert not kernel.path.exists()
    assert result.removed == 1
    assert {path.name[0] for path in result.left} == {"a", "b", "c"}
    for path, text in foreign.items():
        assert path.read_text() == text
    assert (outside / "precious").read_text() == "keep"
    assert (cache.kernels / ("d" * 64)).is_symlink()


def test_clear_does_not_follow_a_linked_folder_of_kernels(
    cache: KernelCache, pretend: PretendCompiler, tmp_path: Path
) -> None:
    kernel = make(cache, pretend)
    other = KernelCache(tmp_path / "other", 2**30)
    other.root.mkdir()
    other.kernels.symlink_to(cache.kernels)
    assert upkeep.clear(other).removed == 0
    assert in_cache(cache, kernel)


def test_clear_leaves_a_lock_that_is_held(cache: KernelCache, pretend: PretendCompiler) -> None:
    import fcntl

    make(cache, pretend)
    (lock,) = (cache.root / "locks").iterdir()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        upkeep.clear(cache)
    assert lock.exists()
    assert not cache.kernels.exists()
