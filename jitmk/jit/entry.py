"""One kernel in the cache: a folder of four files, and the rules by which it is believed.

``kernel.cubin``, ``kernel.cu`` (the source), ``compile.log``, and ``entry.json``, which has the SHA-256 and size of
the other three and of itself. An entry is read once into memory and judged on exactly those bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jitmk.jit.compiler import KernelInfo
from jitmk.jit.folder import read_file
from jitmk.jit.key import SCHEMA

CUBIN = "kernel.cubin"
SOURCE = "kernel.cu"
LOG = "compile.log"
META = "entry.json"
TUNING = "tuning.json"  # the one file of a stored tuning: see jitmk.jit.tunings
FILES = frozenset({CUBIN, SOURCE, LOG, META, TUNING})
FORMAT = "jitmk-kernel"
KEY_NAME = re.compile(r"[0-9a-f]{64}")


class BadEntryError(Exception):
    """An entry is not what was written; the message says how. Never leaves the cache."""


@dataclass(frozen=True)
class EntryMeta:
    """What entry.json says.

    Attributes:
        key: the entry's key, which is also its folder's name.
        arch: exact target; compiler: ``"nvrtc"`` or ``"nvcc"``; build: the compiler's very build.
        command: the command that made the cubin; seconds: how long that took.
        info: registers, shared memory, spills.
        sizes: bytes of each file but entry.json; sha256: their digests.
    """

    key: str
    arch: str
    compiler: str
    build: str
    command: tuple[str, ...]
    seconds: float
    info: KernelInfo
    sizes: Mapping[str, int]
    sha256: Mapping[str, str]


def encode(
    *,
    key: str,
    arch: str,
    compiler: str,
    build: str,
    command: tuple[str, ...],
    seconds: float,
    info: KernelInfo,
    cubin: bytes,
    source: str,
    log: str,
) -> dict[str, bytes]:
    """The files of an entry, by name."""
    files = {CUBIN: cubin, SOURCE: source.encode(), LOG: log.encode("utf-8", "replace")}
    record: dict[str, Any] = {
        "format": FORMAT,
        "schema": SCHEMA,
        "key": key,
        "arch": arch,
        "compiler": compiler,
        "build": build,
        "command": list(command),
        "seconds": round(seconds, 6),
        "info": asdict(info),
        "sizes": {name: len(data) for name, data in files.items()},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    record["checksum"] = checksum(record)
    files[META] = json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"
    return files


def read_meta(folder: Path) -> EntryMeta:
    """entry.json of ``folder``, believed only if its checksum holds.

    Raises:
        BadEntryError: it is missing, garbage, altered, or speaks of another key.
    """
    try:
        record = json.loads(read_file(folder / META))
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise BadEntryError(f"{META} is not an entry of jitmk")
        if record.pop("checksum", None) != checksum(record):
            raise BadEntryError(f"{META} was altered")
        if record["schema"] != SCHEMA or record["key"] != folder.name:
            raise BadEntryError(f"{META} belongs to key {record['key']} of schema {record['schema']}")
        return EntryMeta(
            key=record["key"],
            arch=record["arch"],
            compiler=record["compiler"],
            build=record["build"],
            command=tuple(record["command"]),
            seconds=float(record["seconds"]),
            info=KernelInfo(**record["info"]),
            sizes=dict(record["sizes"]),
            sha256=dict(record["sha256"]),
        )
    except OSError as error:
        raise BadEntryError(f"{META} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadEntryError(f"{META} is malformed: {error}") from error


def read_checked(folder: Path, meta: EntryMeta, name: str) -> bytes:
    """One file of an entry, with the bytes that were written and no others; else BadEntryError."""
    try:
        data = read_file(folder / name)
    except OSError as error:
        raise BadEntryError(f"{name} cannot be read: {error.strerror or error}") from error
    if len(data) != meta.sizes.get(name):
        raise BadEntryError(f"{name} has {len(data)} bytes instead of {meta.sizes.get(name)}")
    if hashlib.sha256(data).hexdigest() != meta.sha256.get(name):
        raise BadEntryError(f"{name} does not have the SHA-256 that it was written with")
    return data


def verify(folder: Path) -> EntryMeta:
    """Check every file of an entry; raises BadEntryError with the first that is wrong."""
    meta = read_meta(folder)
    for name in (CUBIN, SOURCE, LOG):
        read_checked(folder, meta, name)
    return meta


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, in which it is kept itself under another name."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
