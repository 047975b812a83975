"""Keeping the cache in bounds and in order: listing, eviction, verification, clearing.

Whatever is removed is first renamed to a temporary name, so that nobody reads half an entry; and only files that
jitmk itself writes, in folders named as it names them, are ever removed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jitmk.jit import entry as entries
from jitmk.jit import folder as folders
from jitmk.jit import tunings as stored_tunings
from jitmk.jit.cache import LOCKS, TAG, KernelCache
from jitmk.jit.entry import BadEntryError, EntryMeta
from jitmk.jit.tunings import TuningRecord

_LEFTOVER_SECONDS = 3600.0
_DAY_SECONDS = 86400.0
_ASIDE_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{8}")
_TEMPORARY_NAME = re.compile(re.escape(folders.TEMPORARY) + r"[0-9a-f]{16}")
_LOCK_NAME = re.compile(r"[0-9a-f]{2}\.lock")


@dataclass(frozen=True)
class Item:
    """A folder of the cache.

    ``kind`` is kernel, tuning, quarantine, failed or temporary; ``used`` is seconds since 1970.
    """

    path: Path
    kind: str
    bytes: int
    used: float


@dataclass(frozen=True)
class Stats:
    """Counts and bytes of the cache by kind of item, and the limit in bytes."""

    counts: dict[str, int]
    bytes: dict[str, int]
    limit: int

    @property
    def total_bytes(self) -> int:
        """Bytes of everything that counts against the limit."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Cleared:
    """What clearing removed, and which folders it left because they hold files that are not jitmk's."""

    removed: int
    bytes: int
    left: tuple[Path, ...]


def items(cache: KernelCache) -> list[Item]:
    """Everything in the cache, least recently used first."""
    found = [
        *_scan(cache.kernels, entries.KEY_NAME, "kernel"),
        *_scan(cache.tunings, entries.KEY_NAME, "tuning"),
        *_scan(cache.quarantine, _ASIDE_NAME, "quarantine"),
        *_scan(cache.failed, entries.KEY_NAME, "failed"),
    ]
    for folder in (cache.kernels, cache.tunings, cache.quarantine, cache.failed):
        found += _scan(folder, _TEMPORARY_NAME, "temporary")
    return sorted(found, key=lambda item: item.used)


def kernels(cache: KernelCache) -> list[tuple[Item, EntryMeta | None]]:
    """The kernels, most recently used first, each with its description or None if that is damaged."""
    result: list[tuple[Item, EntryMeta | None]] = []
    for item in reversed(items(cache)):
        if item.kind == "kernel":
            try:
                result.append((item, entries.read_meta(item.path)))
            except BadEntryError:
                result.append((item, None))
    return result


def tunings(cache: KernelCache) -> list[tuple[Item, TuningRecord | None]]:
    """The stored tunings, most recently used first, each with what it says or None if that is damaged."""
    result: list[tuple[Item, TuningRecord | None]] = []
    for item in reversed(items(cache)):
        if item.kind == "tuning":
            try:
                result.append((item, stored_tunings.read(item.path)))
            except BadEntryError:
                result.append((item, None))
    return result


def stats(cache: KernelCache) -> Stats:
    """How many items of each kind there are, and how big they are."""
    kinds = ("kernel", "tuning", "quarantine", "failed", "temporary")
    found = items(cache)
    return Stats(
        counts={kind: sum(item.kind == kind for item in found) for kind in kinds},
        bytes={kind: sum(item.bytes for item in found if item.kind == kind) for kind in kinds},
        limit=cache.max_bytes,
    )


def verify(cache: KernelCache) -> Iterator[tuple[Path, str | None]]:
    """Check every byte of every kernel and tuning: yields each folder with None, or with what is wrong with it."""
    checks: dict[str, Callable[[Path], object]] = {"kernel": entries.verify, "tuning": stored_tunings.read}
    for item in items(cache):
        if item.kind in checks:
            try:
                checks[item.kind](item.path)
                yield item.path, None
            except BadEntryError as error:
                if item.path.exists():
                    yield item.path, str(error)


def evict(cache: KernelCache, keep: str) -> None:
    """Remove leftovers of crashes, then the least recently used items until the cache is within its limit.

    What is broken goes before what works, tunings, which are small and took minutes, after kernels; and what is named
    ``keep`` goes last of all.
    """
    now = time.time()
    found = items(cache)
    for item in [item for item in found if item.kind == "temporary" and now - item.used > _LEFTOVER_SECONDS]:
        _remove(item)
        found.remove(item)
    total = sum(item.bytes for item in found)
    worth = {"kernel": 1, "tuning": 2}
    found.sort(key=lambda item: (item.path.name == keep, worth.get(item.kind, 0), item.used))
    for item in found:
        if total <= cache.max_bytes:
            return
        if item.kind != "temporary" and _remove(item):
            total -= item.bytes


def clear(cache: KernelCache, older_than_days: float | None = None) -> Cleared:
    """Remove all items, or those not used for that many days. Files that jitmk did not write stay where they are."""
    limit = None if older_than_days is None else time.time() - older_than_days * _DAY_SECONDS
    removed, size = 0, 0
    left: list[Path] = []
    for item in items(cache):
        if limit is not None and item.used > limit:
            continue
        if _remove(item):
            removed, size = removed + 1, size + item.bytes
        else:
            left.append(item.path)
    if limit is None:
        _remove_empty_house(cache)
    return Cleared(removed, size, tuple(left))


def _scan(folder: Path, name: re.Pattern[str], kind: str) -> Iterator[Item]:
    """The real folders in ``folder`` whose name matches; a ``folder`` that is a link is passed over."""
    if not folders.is_real_folder(folder):
        return
    for path in folder.iterdir():
        if not name.fullmatch(path.name) or not folders.is_real_folder(path):
            continue
        with suppress(OSError):  # it may vanish at any moment
            marker = path / entries.META
            used = (marker if marker.is_file() and not marker.is_symlink() else path).stat().st_mtime
            yield Item(path, kind, folders.tree_bytes(path), used)


def _remove(item: Item) -> bool:
    """Remove an item unless it holds what is not jitmk's; returns whether it is gone."""
    if not _is_ours(item):
        return False
    try:
        path = item.path if item.kind == "temporary" else folders.move_aside(item.path)
        for name in entries.FILES:
            (path / name).unlink(missing_ok=True)
        path.rmdir()
    except FileNotFoundError:
        return True  # someone else removed it first
    except OSError:
        return False
    return True


def _is_ours(item: Item) -> bool:
    """Whether a folder holds only files that jitmk writes there; a kernel also has jitmk's mark, or no mark at all."""
    try:
        with os.scandir(item.path) as found:
            contents = list(found)
    except OSError:
        return False
    names = {each.name for each in contents}
    if not names <= entries.FILES or any(each.is_dir(follow_symlinks=False) for each in contents):
        return False
    if item.kind != "kernel" or entries.META not in names:
        return True
    try:
        record = json.loads(folders.read_file(item.path / entries.META))
    except (OSError, ValueError, RecursionError):
        return True  # a damaged mark beside nothing but our own files
    return not isinstance(record, dict) or record.get("format", entries.FORMAT) == entries.FORMAT


def _remove_empty_house(cache: KernelCache) -> None:
    """Remove locks that nobody holds and the folders that are empty now."""
    import filelock

    locks = cache.root / LOCKS
    if folders.is_real_folder(locks):
        for path in locks.iterdir():
            if _LOCK_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                with suppress(filelock.Timeout, OSError), filelock.FileLock(path, timeout=0):
                    path.unlink(missing_ok=True)
    for folder in (locks, cache.kernels, cache.tunings, cache.quarantine, cache.failed):
        if folders.is_real_folder(folder):
            with suppress(OSError):
                folder.rmdir()
    tag = cache.root / TAG
    with suppress(OSError):
        if {path.name for path in cache.root.iterdir()} == {TAG}:
            tag.unlink()
            cache.root.rmdir()
