"""Private folders and durable files: what the cache needs of a file system, and nothing about kernels.

The cache holds code that a GPU will run with the user's rights, so its folders belong to the user alone. Links inside
it are never followed; the root itself may be one, since where the cache lies is the user's choice.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from pathlib import Path

from jitmk.errors import CacheError

_PRIVATE = 0o700
_OTHERS_WRITE = 0o022
TEMPORARY = ".tmp-"


def current_user() -> int:
    """The user id whose folders are trusted."""
    return os.geteuid()


def make_private(folder: Path) -> None:
    """Create ``folder`` for this user alone (its parents as the umask says), or check the one that is there.

    Raises:
        CacheError: it belongs to someone else, or others may write to it, or it is no folder.
        OSError: it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=_PRIVATE)
    except FileExistsError:
        check_private(folder)


def check_private(folder: Path) -> None:
    """Raise CacheError unless ``folder`` is a real folder that belongs to this user and only they can write to."""
    info = folder.lstat()
    advice = "set JITMK_CACHE_DIR to a folder of your own"
    if not stat.S_ISDIR(info.st_mode):
        raise CacheError(f"{folder} in the cache's place is no folder; remove it, or {advice}")
    if info.st_uid != current_user():
        raise CacheError(
            f"the cache folder {folder} belongs to user id {info.st_uid}, not to {current_user()}; a kernel from it "
            f"could be anyone's code, so it is not used: {advice}"
        )
    if info.st_mode & _OTHERS_WRITE:
        raise CacheError(
            f"other users may write to the cache folder {folder} (mode {stat.S_IMODE(info.st_mode):o}); "
            f"run 'chmod go-w {folder}', or {advice}"
        )


def read_file(path: Path) -> bytes:
    """The bytes of a regular file of this user; a link or someone else's file is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != current_user():
            raise OSError(f"{path} is no regular file of user id {current_user()}")
        return file.read()


def write_file(path: Path, data: bytes) -> None:
    """Create ``path`` with ``data`` and wait until it is on disk. Every file of the cache is written here."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(files: dict[str, bytes], target: Path) -> None:
    """Make ``target``, a folder of these files, appear whole or not at all.

    Raises:
        OSError: the disk is full or read-only, or ``target`` exists already. Nothing is left behind.
    """
    temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    temporary.mkdir(mode=_PRIVATE)
    try:
        for name, data in files.items():
            write_file(temporary / name, data)
        sync_folder(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Give ``folder``, which is made where there is none, the file ``name``: the old one is there until the new one is.

    Raises:
        CacheError: ``folder`` is there, but not this user's alone.
        OSError: the disk is full or read-only. Nothing is left behind.
    """
    temporary = folder.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    temporary.mkdir(mode=_PRIVATE)
    try:
        write_file(temporary / name, data)
        make_private(folder)
        (temporary / name).rename(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder)
    sync_folder(folder.parent)


def move_aside(folder: Path) -> Path:
    """Give ``folder`` a temporary name beside it, so that it is gone for everyone else at once."""
    temporary = folder.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    folder.rename(temporary)
    return temporary


def tree_bytes(folder: Path) -> int:
    """Bytes of the regular files in ``folder``, which may vanish meanwhile."""
    total = 0
    try:
        with os.scandir(folder) as found:
            for item in found:
                if item.is_file(follow_symlinks=False):
                    total += item.stat(follow_symlinks=False).st_size
    except OSError:
        pass
    return total


def is_real_folder(path: Path) -> bool:
    """Whether ``path`` is a folder itself, not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False
