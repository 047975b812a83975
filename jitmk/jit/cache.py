"""The cache of compiled kernels on disk.

Layout of the root, mode 0700 and owned by the user::

    CACHEDIR.TAG             tells backup programs to pass it over
    kernels/<key>/           one folder an entry, see jitmk.jit.entry; published whole by a rename
    kernels/.tmp-*/          entries being written, or on their way out
    quarantine/<key>-*/      entries that were not what had been written
    tuning/<name>/           what was measured to be fast, see jitmk.jit.tunings
    failed/<key>/            sources that a compiler refused, with its log
    locks/<two digits>.lock  one compile per key at a time; nothing depends on them for being right

Other folders of the root belong to other parts of jitmk. Nothing is created before something is written.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jitmk.jit import entry as entries
from jitmk.jit import folder as folders
from jitmk.jit.entry import BadEntryError, EntryMeta
from jitmk.settings import Settings

_log = logging.getLogger(__name__)

KERNELS = "kernels"
QUARANTINE = "quarantine"
FAILED = "failed"
TUNINGS = "tuning"
LOCKS = "locks"
TAG = "CACHEDIR.TAG"
# The first line is what the Cache Directory Tagging Specification (https://bford.info/cachedir/) asks for.
_TAG_TEXT = b"Signature: 8a477f597d28d172789f06886806bc55\n# This folder holds kernels compiled by jitmk.\n"
# Longer than any compile may take: a lock held for longer than this is not worth waiting for.
_LOCK_SECONDS = 1000.0


class CacheWarning(UserWarning):
    """The cache cannot be used as it should be; jitmk goes on without it, or rebuilt what was damaged."""


@dataclass(frozen=True)
class CachedKernel:
    """A verified entry in memory: its cubin, log and description, and the folder that it came from."""

    cubin: bytes
    log: str
    meta: EntryMeta
    path: Path


class KernelCache:
    """The kernels under one root. Safe to use from many processes and threads at once."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.kernels = root / KERNELS
        self.quarantine = root / QUARANTINE
        self.failed = root / FAILED
        self.tunings = root / TUNINGS

    @classmethod
    def from_settings(cls, settings: Settings) -> KernelCache:
        """The cache at JITMK_CACHE_DIR, or in the user's cache folder of this platform."""
        root = settings.cache_dir
        if root is None:
            import platformdirs

            root = Path(platformdirs.user_cache_dir("jitmk", appauthor=False))
        return cls(root, settings.cache_max_bytes)

    def load(self, key: str) -> CachedKernel | None:
        """The entry of ``key`` if there is a sound one. A damaged one is quarantined, with a warning.

        Raises:
            CacheError: the cache is someone else's, or others may write to it.
        """
        self.check_owner()
        folder = self.kernels / key
        if not folders.is_real_folder(folder):
            return None
        try:
            meta = entries.read_meta(folder)
            cubin = entries.read_checked(folder, meta, entries.CUBIN)
            log = entries.read_checked(folder, meta, entries.LOG).decode("utf-8", "replace")
        except BadEntryError as error:
            if folder.exists():  # else it was evicted while it was read, which is no damage
                self.put_aside(folder, str(error))
            return None
        with suppress(OSError):  # a read-only cache still serves; its order of use is then the order of writing
            os.utime(folder / entries.META)
        return CachedKernel(cubin, log, meta, folder)

    def store(self, key: str, files: dict[str, bytes]) -> Path | None:
        """Publish an entry; None, with a warning, where the disk is full or read-only.

        Raises:
            CacheError: the cache is someone else's, or others may write to it.
        """
        target = self.kernels / key
        size = sum(map(len, files.values()))
        if size > self.max_bytes:
            _log.info("kernel %s has %d bytes, more than the whole cache may have (%d)", key, size, self.max_bytes)
            return None
        try:
            self.prepare(self.kernels)
            folders.publish(files, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.is_dir():
                return target  # another process published the same key first
            self._warn_unwritable(error)
            return None
        self._evict(key)
        return target if target.is_dir() else None

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold off other builders of ``key``, as far as the file system allows; never a condition for being right.

        Keys share 256 locks, so that there are never more lock files than that.
        """
        import filelock

        lock: filelock.BaseFileLock | None = None
        try:
            self.prepare(self.root / LOCKS)
            lock = filelock.FileLock(self.root / LOCKS / f"{key[:2]}.lock", mode=0o600)
            lock.acquire(timeout=_LOCK_SECONDS)
        except filelock.Timeout:
            _log.warning("waited %.0f s for another process that builds kernel %s; going on", _LOCK_SECONDS, key)
            lock = None
        except (OSError, NotImplementedError) as error:
            _log.info("no lock for kernel %s: %s", key, error)
            lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def put_aside(self, folder: Path, reason: str) -> None:
        """Move a damaged entry into quarantine, or leave it where it cannot be moved, and warn."""
        aside, failure = self.move_to_quarantine(folder)
        where = f"moved to {aside}" if aside else f"it could not be moved away: {failure}"
        warnings.warn(
            f"the cached kernel {folder.name[:16]} is damaged and will be built again: {reason} ({where})",
            CacheWarning,
            stacklevel=2,
        )

    def move_to_quarantine(self, folder: Path) -> tuple[Path | None, str]:
        """Take an entry out of use; returns where it lies now, or None and why it could not be moved."""
        aside = self.quarantine / f"{folder.name}-{secrets.token_hex(4)}"
        try:
            self.prepare(self.quarantine)
            folder.rename(aside)
        except OSError as error:
            return None, error.strerror or str(error)
        return aside, ""

    def save_failure(self, key: str, source: str, log: str) -> Path | None:
        """Keep a source that a compiler refused, and its log; returns the source's path, or None if the disk refuses.

        Raises:
            CacheError: the cache is someone else's, or others may write to it.
        """
        target = self.failed / key
        try:
            self.prepare(self.failed)
            folders.publish({entries.SOURCE: source.encode(), entries.LOG: log.encode("utf-8", "replace")}, target)
        except OSError:
            if not target.is_dir():
                return None
        self._evict(key)
        return target / entries.SOURCE

    def check_owner(self) -> None:
        """Raise CacheError where the root or the folder of kernels exists but is not this user's alone."""
        for folder in (Path(os.path.realpath(self.root)), self.kernels):
            with suppress(FileNotFoundError, NotADirectoryError):
                folders.check_private(folder)

    def prepare(self, folder: Path) -> None:
        """Create the root and ``folder`` in it, or check that they are this user's alone."""
        folders.make_private(Path(os.path.realpath(self.root)))
        tag = self.root / TAG
        if not tag.exists():
            with suppress(FileExistsError):
                folders.write_file(tag, _TAG_TEXT)
        folders.make_private(folder)

    def _evict(self, key: str) -> None:
        from jitmk.jit.upkeep import evict  # upkeep builds on this module

        evict(self, keep=key)

    def _warn_unwritable(self, error: OSError) -> None:
        warnings.warn(
            f"the kernel cache {self.root} cannot be written ({error.strerror or error}); going on without it, so this "
            "kernel will be compiled again next time. Make room, or set JITMK_CACHE_DIR to a folder that is writable",
            CacheWarning,
            stacklevel=3,
        )
