"""What the benchmarks' command lines have in common: lists of names, counts and numbers, and where results go."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from pathlib import Path


def names(known: Collection[str], *, none: bool = False) -> Callable[[str], list[str]]:
    """Parses comma-separated names of `known`, each once; with `none`, the word none alone is the empty list."""

    def parse(text: str) -> list[str]:
        if none and text == "none":
            return []
        found = list(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                allowed = ", ".join(known) + (", or none" if none else "")
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {allowed}")
        return found

    return parse


def count(minimum: int) -> Callable[[str], int]:
    """Parses a whole number of at least `minimum`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {minimum}")
        return int(text)

    return parse


def counts(text: str) -> list[int]:
    """Parses comma-separated whole numbers of at least 1, in ascending order."""
    return sorted({count(1)(part) for part in text.split(",")})


def number(text: str) -> float:
    """Parses a finite number of at least 0: a percentage, or seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def add_json(parser: argparse.ArgumentParser, kind: str, other: str = "") -> None:
    """Adds --json FILE; where it is not given the caller takes `records.default_path(kind, ...)`.

    Args:
        other: what the help says of further defaults.
    """
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"where to write the results (default: benchmarks/results/{kind}-<gpu>.json{other})",
    )
