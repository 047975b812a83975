"""The cache under faults: damaged entries, full and read-only disks, other owners, links, crashes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

import jitmk
from jitmk.arch import GpuArch
from jitmk.errors import CacheError
from jitmk.jit import cache as cache_module
from jitmk.jit import folder as folders
from jitmk.jit import upkeep
from jitmk.jit.build import CompiledKernel, build
from jitmk.jit.cache import CacheWarning, KernelCache
from jitmk.settings import Settings
from tests.unit.jit.sources import PretendCompiler

SM_90A = GpuArch.parse("sm_90a")


def make(cache: KernelCache, compiler: PretendCompiler, source: str = "source") -> CompiledKernel:
    return build(source, SM_90A, settings=Settings(), compiler=compiler, cache=cache)


def entry_of(kernel: CompiledKernel) -> Path:
    assert kernel.path is not None
    return kernel.path


def test_layout_and_modes(cache: KernelCache, pretend: PretendCompiler) -> None:
    entry = entry_of(make(cache, pretend))
    assert entry == cache.root / "kernels" / entry.name
    assert {path.name for path in entry.iterdir()} == {"kernel.cubin", "kernel.cu", "compile.log", "entry.json"}
    assert (entry / "kernel.cu").read_text() == "source"
    assert (entry / "compile.log").read_text() == "a log"
    for folder in (cache.root, cache.kernels, entry):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in entry.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (cache.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_nothing_is_created_before_something_is_written(cache: KernelCache) -> None:
    assert cache.load("0" * 64) is None
    assert upkeep.items(cache) == []
    assert not cache.root.exists()


def test_the_default_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert KernelCache.from_settings(Settings()).root == tmp_path / "jitmk"
    assert list(tmp_path.iterdir()) == []


def truncate(entry: Path) -> None:
    data = (entry / "kernel.cubin").read_bytes()
    (entry / "kernel.cubin").write_bytes(data[: len(data) // 2])


def flip_a_byte(entry: Path) -> None:
    data = bytearray((entry / "kernel.cubin").read_bytes())
    data[len(data) // 2] ^= 1
    (entry / "kernel.cubin").write_bytes(data)


def lose_the_cubin(entry: Path) -> None:
    (entry / "kernel.cubin").unlink()


def lose_the_description(entry: Path) -> None:
    (entry / "entry.json").unlink()


def write_garbage(entry: Path) -> None:
    (entry / "entry.json").write_bytes(b"\xff\x00 not json {")


def write_deep_garbage(entry: Path) -> None:
    (entry / "entry.json").write_text("[" * 100_000)


def write_a_list(entry: Path) -> None:
    (entry / "entry.json").write_text("[]")


def change_a_number(entry: Path) -> None:
    record = json.loads((entry / "entry.json").read_text())
    record["info"]["registers"] = 8
    (entry / "entry.json").write_text(json.dumps(record))


def link_the_cubin(entry: Path) -> None:
    (entry / "kernel.cubin").rename(entry.parent.parent / "elsewhere")
    (entry / "kernel.cubin").symlink_to(entry.parent.parent / "elsewhere")


def change_the_log(entry: Path) -> None:
    (entry / "compile.log").write_text("another log")


DAMAGES = [
    truncate,
    flip_a_byte,
    lose_the_cubin,
    lose_the_description,
    write_garbage,
    write_deep_garbage,
    write_a_list,
    change_a_number,
    link_the_cubin,
    change_the_log,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_quarantined_and_built_again(
    cache: KernelCache, pretend: PretendCompiler, damage: Callable[[Path], None]
) -> None:
    good = make(cache, pretend)
    damage(entry_of(good))
    with pytest.warns(CacheWarning, match="is damaged and will be built again"):
        again = make(cache, pretend)
    assert not again.from_cache
    assert again.cubin == good.cubin
    assert pretend.compiles == 2
    assert [path.name[:64] for path in cache.quarantine.iterdir()] == [good.key]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(cache, pretend).from_cache


def test_an_entry_under_another_key_is_not_believed(cache: KernelCache, pretend: PretendCompiler) -> None:
    one, two = make(cache, pretend, "one"), make(cache, pretend, "two")
    for path in entry_of(two).iterdir():
        path.unlink()
    for path in entry_of(one).iterdir():
        (entry_of(two) / path.name).write_bytes(path.read_bytes())
    with pytest.warns(CacheWarning, match="belongs to key"):
        assert make(cache, pretend, "two").cubin == two.cubin


def test_a_damaged_entry_that_cannot_be_moved_is_still_not_used(
    cache: KernelCache, pretend: PretendCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = make(cache, pretend)
    truncate(entry_of(good))

    def refuse(folder: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(folders, "make_private", refuse)
    with pytest.warns(CacheWarning) as caught:
        assert make(cache, pretend).cubin == good.cubin
    messages = " ".join(str(warning.message) for warning in caught)
    assert "it could not be moved away: Read-only file system" in messages


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("file", ["CACHEDIR.TAG", "kernel.cubin", "entry.json"])
def test_a_disk_that_refuses_is_a_warning(
    cache: KernelCache, pretend: PretendCompiler, monkeypatch: pytest.MonkeyPatch, code: int, file: str
) -> None:
    real_write = folders.write_file

    def write(path: Path, data: bytes) -> None:
        if path.name == file:
            raise OSError(code, os.strerror(code))
        real_write(path, data)

    monkeypatch.setattr(folders, "write_file", write)
    with pytest.warns(CacheWarning, match=f"cannot be written .{os.strerror(code)}.; going on without it"):
        kernel = make(cache, pretend)
    assert kernel.cubin.startswith(b"\x7fELF")
    assert kernel.path is None
    assert [path for path in cache.root.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"] == list(
        cache.root.glob("locks/*")
    )
    assert upkeep.items(cache) == []


def test_a_folder_that_cannot_be_made_is_a_warning(pretend: PretendCompiler) -> None:
    # Nobody, not even root, can make a folder there.
    cache = KernelCache(Path("/proc/jitmk-cache"), 2**30)
    with pytest.warns(CacheWarning, match="cannot be written"):
        kernel = make(cache, pretend)
    assert kernel.path is None
    assert not kernel.from_cache


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
def test_a_read_only_cache_still_serves(cache: KernelCache, pretend: PretendCompiler) -> None:
    make(cache, pretend)
    cache.kernels.chmod(0o500)
    try:
        assert make(cache, pretend).from_cache
        with pytest.warns(CacheWarning, match="cannot be written"):
            assert make(cache, pretend, "another").path is None
    finally:
        cache.kernels.chmod(0o700)


def test_someone_elses_cache_is_an_error(
    cache: KernelCache, pretend: PretendCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(cache, pretend)
    monkeypatch.setattr(folders, "current_user", lambda: os.geteuid() + 1)
    with pytest.raises(CacheError, match=r"belongs to user id .* set JITMK_CACHE_DIR to a folder of your own"):
        make(cache, pretend)
    assert pretend.compiles == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("name", ["", "kernels", "locks"])
def test_a_folder_given_away_is_an_error(cache: KernelCache, pretend: PretendCompiler, name: str) -> None:
    make(cache, pretend)
    os.chown(cache.root / name, 12345, -1)
    with pytest.raises(CacheError, match="belongs to user id 12345"):
        make(cache, pretend, "another")


def test_a_cache_that_others_may_write_to_is_an_error(cache: KernelCache, pretend: PretendCompiler) -> None:
    make(cache, pretend)
    cache.root.chmod(0o777)
    with pytest.raises(CacheError, match="chmod go-w"):
        make(cache, pretend)


def test_the_root_may_be_a_link_but_nothing_in_it(tmp_path: Path, pretend: PretendCompiler) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = KernelCache(tmp_path / "link", 2**30)
    make(linked, pretend)
    assert make(linked, pretend).from_cache
    assert (tmp_path / "real" / "kernels").is_dir()

    planted = KernelCache(tmp_path / "planted", 2**30)
    planted.root.mkdir()
    planted.kernels.symlink_to(tmp_path / "real" / "kernels")
    with pytest.raises(CacheError, match="is no folder"):
        make(planted, pretend)


def test_an_entry_that_is_a_link_is_not_used(cache: KernelCache, pretend: PretendCompiler, tmp_path: Path) -> None:
    kernel = make(cache, pretend)
    entry_of(kernel).rename(tmp_path / "moved")
    entry_of(kernel).symlink_to(tmp_path / "moved")
    with pytest.warns(CacheWarning, match="cannot be written"):
        assert not make(cache, pretend).from_cache
    assert len(list((tmp_path / "moved").iterdir())) == 4


def test_a_crash_before_the_rename_leaves_nothing_visible(cache: KernelCache, pretend: PretendCompiler) -> None:
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(jitmk.__file__).parent.parent)!r})
from tests.unit.jit.test_cache import KernelCache, PretendCompiler, make
Path.rename = lambda self, target: os._exit(9)
make(KernelCache(Path({str(cache.root)!r}), 2**30), PretendCompiler(Path({str(pretend.notes)!r})))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    leftovers = [item.kind for item in upkeep.items(cache)]
    assert leftovers == ["temporary"]
    assert not make(cache, pretend).from_cache
    assert make(cache, pretend).from_cache


def test_a_lock_that_does_not_work_changes_nothing(
    cache: KernelCache, pretend: PretendCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr(filelock, "FileLock", refuse)
    assert not make(cache, pretend).from_cache
    assert make(cache, pretend).from_cache


def test_a_lock_that_is_never_released_is_not_waited_for_for_ever(
    cache: KernelCache, pretend: PretendCompiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "_LOCK_SECONDS", 0.01)
    make(cache, pretend)
    upkeep.clear(cache, older_than_days=0)
    for path in (cache.root / "locks").iterdir():
        with path.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            kernel = make(cache, pretend)
    assert not kernel.from_cache
    assert kernel.path is not None
    assert "going on" in caplog.text


def test_a_hit_counts_as_a_use(cache: KernelCache, pretend: PretendCompiler) -> None:
    meta = entry_of(make(cache, pretend)) / "entry.json"
    os.utime(meta, (1, 1))
    make(cache, pretend)
    assert meta.stat().st_mtime > 1
