"""Stored tunings: found for their kernel and GPU alone, replaced whole, and never believed when they are damaged."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jitmk.arch import GpuArch
from jitmk.errors import CacheError
from jitmk.jit import folder as folders
from jitmk.jit import tunings, upkeep
from jitmk.jit.build import build
from jitmk.jit.cache import CacheWarning, KernelCache
from jitmk.jit.tunings import TuningKey, TuningRecord
from jitmk.settings import Settings
from tests.unit.jit.sources import PretendCompiler

KEY = TuningKey("ab" * 32, "NVIDIA H200", 132)
RECORD = TuningRecord(KEY, "a model", {"window": 3, "split_steps": [[0, 1], [400, 16]]}, [["window", 3, 128, 1.5]])


def test_what_is_stored_is_found_again(cache: KernelCache) -> None:
    assert tunings.load(cache, KEY) is None and not cache.root.exists()
    path = tunings.store(cache, RECORD)
    assert path == cache.root / "tuning" / KEY.name
    assert tunings.load(cache, KEY) == RECORD
    assert path.stat().st_mode & 0o777 == 0o700 and (path / "tuning.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("other", [{"kernel": "cd" * 32}, {"gpu": "NVIDIA H100"}, {"sms": 114}])
def test_another_kernel_or_gpu_has_none(cache: KernelCache, other: dict[str, str]) -> None:
    tunings.store(cache, RECORD)
    assert tunings.load(cache, replace(KEY, **other)) is None  # type: ignore[arg-type]


def test_a_later_one_takes_the_place_of_an_earlier_one(cache: KernelCache) -> None:
    tunings.store(cache, RECORD)
    later = replace(RECORD, values={"window": 4})
    path = tunings.store(cache, later)
    assert tunings.load(cache, KEY) == later
    assert [file.name for file in path.iterdir()] == ["tuning.json"]
    assert [folder.name for folder in cache.tunings.iterdir()] == [KEY.name]


def test_a_failed_write_leaves_the_earlier_one(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    tunings.store(cache, RECORD)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_file", full)
    with pytest.raises(CacheError, match="No space left"):
        tunings.store(cache, replace(RECORD, values={}))
    assert tunings.load(cache, KEY) == RECORD
    assert [folder.name for folder in cache.tunings.iterdir()] == [KEY.name]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def change_a_value(file: Path) -> None:
    record = json.loads(file.read_text())
    record["values"]["window"] = 300
    file.write_text(json.dumps(record))


def write_a_list(file: Path) -> None:
    file.write_text("[]")


def nest_deeply(file: Path) -> None:
    file.write_text("[" * 100_000)


def link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def lose(file: Path) -> None:
    file.unlink()


def open_to_others(file: Path) -> None:
    file.parent.chmod(0o777)


def bring_anothers(file: Path) -> None:
    other = KernelCache(file.parents[2] / "other", 2**30)
    path = tunings.store(other, replace(RECORD, key=replace(KEY, gpu="NVIDIA B200")))
    file.write_bytes((path / "tuning.json").read_bytes())


@pytest.mark.parametrize(
    "damage", [truncate, change_a_value, write_a_list, nest_deeply, link, lose, open_to_others, bring_anothers]
)
def test_what_is_damaged_or_foreign_is_told_and_not_used(cache: KernelCache, damage: Callable[[Path], None]) -> None:
    path = tunings.store(cache, RECORD)
    damage(path / "tuning.json")
    with pytest.warns(CacheWarning, match="is not used, the defaults are"):
        assert tunings.load(cache, KEY) is None
    if damage is not open_to_others:
        (verdict,) = dict(upkeep.verify(cache)).values()
        assert verdict is not None
        assert [record for _, record in upkeep.tunings(cache)] == [None]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tunings.store(cache, RECORD)
            assert tunings.load(cache, KEY) == RECORD


def test_a_folder_in_its_place_that_is_somebodys_link_is_not_written_to(cache: KernelCache, tmp_path: Path) -> None:
    tunings.store(cache, RECORD)
    upkeep.clear(cache)
    cache.prepare(cache.tunings)
    (tmp_path / "precious").mkdir()
    (cache.tunings / KEY.name).symlink_to(tmp_path / "precious")
    with pytest.raises(CacheError):
        tunings.store(cache, RECORD)
    assert list((tmp_path / "precious").iterdir()) == []
    assert tunings.load(cache, KEY) is None


def test_a_cache_that_keeps_nothing_says_so(cache: KernelCache) -> None:
    cache.max_bytes = 0
    with pytest.raises(CacheError, match="JITMK_CACHE_MAX_BYTES"):
        tunings.store(cache, RECORD)


def test_upkeep_lists_checks_and_clears_them(cache: KernelCache, pretend: PretendCompiler) -> None:
    build("source", GpuArch.parse("sm_90a"), settings=Settings(), compiler=pretend, cache=cache)
    path = tunings.store(cache, RECORD)
    assert upkeep.stats(cache).counts["tuning"] == 1
    assert [record for _, record in upkeep.tunings(cache)] == [RECORD]
    assert dict(upkeep.verify(cache))[path] is None
    then = time.time() - 10 * 86400
    os.utime(path, (then, then))
    assert upkeep.clear(cache, older_than_days=5).removed == 1
    assert tunings.load(cache, KEY) is None
    tunings.store(cache, RECORD)
    assert upkeep.clear(cache).removed == 2
    assert not cache.root.exists()


def test_kernels_are_evicted_before_tunings(cache: KernelCache, pretend: PretendCompiler) -> None:
    def kernel(source: str) -> Path:
        built = build(source, GpuArch.parse("sm_90a"), settings=Settings(), compiler=pretend, cache=cache)
        assert built.path is not None
        return built.path

    path = tunings.store(cache, RECORD)
    os.utime(path, (0, 0))
    one = kernel("one")
    cache.max_bytes = upkeep.stats(cache).total_bytes
    two = kernel("two")
    assert not one.exists() and two.exists() and path.exists()
