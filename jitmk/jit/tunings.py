"""Stored tunings: what `jitmk tune` found for one kernel on one kind of GPU, a small JSON file beside the kernels.

``tuning/<name>/tuning.json``, where the name is a hash of the kernel's key, the GPU's name, its SMs and this layout's
version. What the values mean is not known here: whoever uses them checks them. They are written under the kernel's lock
and replaced by a rename, so that a reader finds the old file or the new one; a checksum tells one that was altered.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jitmk.errors import CacheError
from jitmk.jit import folder as folders
from jitmk.jit.cache import CacheWarning, KernelCache
from jitmk.jit.entry import TUNING, BadEntryError, checksum

FORMAT = "jitmk-tuning"
# Raise this when the layout of the file changes.
SCHEMA = 1


@dataclass(frozen=True)
class TuningKey:
    """What a tuning belongs to: a kernel by its key in the cache, and a GPU by name and number of SMs."""

    kernel: str
    gpu: str
    sms: int

    @property
    def name(self) -> str:
        """The folder's name: 64 hex digits."""
        return hashlib.sha256(json.dumps([SCHEMA, self.kernel, self.gpu, self.sms]).encode()).hexdigest()


@dataclass(frozen=True)
class TuningRecord:
    """What the file says.

    Attributes:
        key: what it belongs to.
        model: the model that was measured, for people.
        values: the choices by name.
        measured: what they were chosen from, for people.
    """

    key: TuningKey
    model: str
    values: Mapping[str, Any]
    measured: list[Any] = field(default_factory=list)

    def __str__(self) -> str:
        values = ", ".join(f"{name} {json.dumps(value)}" for name, value in self.values.items())
        return f"{self.model} on {self.key.gpu} ({self.key.sms} SMs): {values}"


def load(cache: KernelCache, key: TuningKey) -> TuningRecord | None:
    """The tuning of ``key`` if there is a sound one. One that is damaged or somebody else's is warned about."""
    folder = cache.tunings / key.name
    if not folders.is_real_folder(folder):
        return None
    try:
        for place in (cache.tunings, folder):
            folders.check_private(place)
        record = read(folder)
    except (BadEntryError, CacheError, OSError) as error:
        if folder.exists():
            warnings.warn(
                f"the stored tuning {folder} is not used, the defaults are: {error}. Run jitmk tune again, or "
                "jitmk-cache verify to set damaged files aside",
                CacheWarning,
                stacklevel=2,
            )
        return None
    with suppress(OSError):  # a read-only cache still serves
        os.utime(folder)
    return record


def store(cache: KernelCache, record: TuningRecord) -> Path:
    """Keep a tuning in place of an earlier one; returns its folder.

    Raises:
        CacheError: the cache is someone else's, is to keep nothing, or cannot be written.
    """
    from jitmk.jit import upkeep  # which builds on this module

    contents: dict[str, Any] = {"format": FORMAT, "schema": SCHEMA, **asdict(record)}
    contents["checksum"] = checksum(contents)
    data = json.dumps(contents, indent=1, sort_keys=True).encode() + b"\n"
    if len(data) > cache.max_bytes:
        raise CacheError(f"the cache may hold {cache.max_bytes} bytes: raise JITMK_CACHE_MAX_BYTES to keep a tuning")
    target = cache.tunings / record.key.name
    try:
        cache.prepare(cache.tunings)
        with cache.lock(record.key.kernel):
            folders.replace_file(target, TUNING, data)
    except OSError as error:
        raise CacheError(
            f"the tuning cannot be kept in {target} ({error.strerror or error}): make room, or set JITMK_CACHE_DIR to "
            "a folder that is writable"
        ) from error
    upkeep.evict(cache, keep=record.key.name)
    return target


def read(folder: Path) -> TuningRecord:
    """The record in ``folder``, believed only if it belongs there and its checksum holds; else BadEntryError."""
    try:
        contents = json.loads(folders.read_file(folder / TUNING))
        if not isinstance(contents, dict) or contents.get("format") != FORMAT:
            raise BadEntryError(f"{TUNING} is not a tuning of jitmk")
        if contents.pop("checksum", None) != checksum(contents):
            raise BadEntryError(f"{TUNING} was altered")
        record = TuningRecord(
            key=TuningKey(**contents["key"]),
            model=contents["model"],
            values=dict(contents["values"]),
            measured=list(contents["measured"]),
        )
        if contents["schema"] != SCHEMA or record.key.name != folder.name:
            raise BadEntryError(f"{TUNING} belongs to another kernel or GPU: {record.key}")
    except OSError as error:
        raise BadEntryError(f"{TUNING} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadEntryError(f"{TUNING} is malformed: {error}") from error
    return record
