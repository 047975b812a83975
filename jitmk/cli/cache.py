"""``jitmk-cache``: looks after the kernels and tunings on disk. Loads neither torch nor anything that belongs to a GPU.

Exit status: 0 done, 1 ``verify`` found damage or ``clear`` had to leave something, 2 bad arguments or a cache that
cannot be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from jitmk.errors import JitmkError
from jitmk.jit import upkeep
from jitmk.jit.cache import KernelCache
from jitmk.jit.compiler import KernelInfo
from jitmk.jit.upkeep import Item
from jitmk.settings import get_settings

_OK = 0
_PROBLEMS = 1
_FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``jitmk-cache`` with ``arguments`` (those of the process when None); returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        cache = KernelCache.from_settings(get_settings())
        if options.command == "dir":
            print(cache.root)
            return _OK
        cache.check_owner()
        if options.command == "list":
            return _list(cache)
        if options.command == "stats":
            return _stats(cache)
        if options.command == "verify":
            return _verify(cache)
        return _clear(cache, options.older_than)
    except (JitmkError, OSError) as error:
        with suppress(BrokenPipeError):
            print(f"jitmk-cache: error: {error}", file=sys.stderr)
        return _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jitmk-cache", description="Looks after the cache of kernels that jitmk compiled (JITMK_CACHE_DIR)."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("dir", help="print where the cache is")
    commands.add_parser("list", help="list kernels and stored tunings, most recently used first")
    commands.add_parser("stats", help="print how many kernels there are and how big they are")
    commands.add_parser("verify", help="check every byte of all kernels and tunings, and set damaged ones aside")
    clear = commands.add_parser("clear", help="remove everything that jitmk put there")
    clear.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="remove only what was not used for that many days"
    )
    return parser


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days; give 0 or more, such as 30 or 0.5")
    return days


def _list(cache: KernelCache) -> int:
    rows: list[tuple[str, ...]] = [("KERNEL", "ARCH", "COMPILER", "REGISTERS", "SHARED", "SPILLS", "SIZE", "USED")]
    for item, meta in upkeep.kernels(cache):
        if meta is None:
            rows.append((item.path.name[:16], "damaged", "-", "-", "-", "-", format_bytes(item.bytes), _age(item)))
            continue
        numbers = ["?" if number is None else str(number) for number in _numbers(meta.info)]
        compiler = f"{meta.compiler} {meta.build.split()[0]}"
        rows.append((meta.key[:16], meta.arch, compiler, *numbers, format_bytes(item.bytes), _age(item)))
    if len(rows) == 1:
        print(f"no kernels in {cache.root}")
    else:
        _print_table(rows)
    for item, record in upkeep.tunings(cache):
        if record is None:
            print(f"tuning {item.path.name[:16]}: damaged")
        else:
            print(f"tuning of kernel {record.key.kernel[:16]}: {record}")
    return _OK


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _stats(cache: KernelCache) -> int:
    stats = upkeep.stats(cache)
    print(f"folder       {cache.root}")
    for kind, label in (
        ("kernel", "kernels"),
        ("tuning", "tunings"),
        ("failed", "refused"),
        ("quarantine", "damaged"),
        ("temporary", "unfinished"),
    ):
        print(f"{label:12} {stats.counts[kind]} ({format_bytes(stats.bytes[kind])})")
    print(f"limit        {format_bytes(stats.limit)}, {format_bytes(stats.total_bytes)} used")
    return _OK


def _verify(cache: KernelCache) -> int:
    good = bad = 0
    for folder, problem in upkeep.verify(cache):
        if problem is None:
            good += 1
            continue
        bad += 1
        aside, failure = cache.move_to_quarantine(folder)
        where = f"moved to {aside}" if aside else f"it could not be moved away: {failure}"
        print(f"{folder.name[:16]}  damaged: {problem} ({where})")
    print(f"{good} sound, {bad} damaged")
    return _PROBLEMS if bad else _OK


def _clear(cache: KernelCache, older_than_days: float | None) -> int:
    result = upkeep.clear(cache, older_than_days)
    print(f"removed {result.removed} ({format_bytes(result.bytes)}) from {cache.root}")
    for folder in result.left:
        print(
            f"jitmk-cache: left {folder}: it holds files that jitmk did not write, or cannot be removed",
            file=sys.stderr,
        )
    return _PROBLEMS if result.left else _OK


def _numbers(info: KernelInfo) -> tuple[int | None, int | None, int | None]:
    return info.registers, info.shared, info.spills


def _age(item: Item) -> str:
    """How long ago an item was used, in its largest unit."""
    seconds = max(0.0, time.time() - item.used)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def format_bytes(count: int) -> str:
    """A size for people: ``"1.5 MiB"``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


if __name__ == "__main__":
    raise SystemExit(main())
