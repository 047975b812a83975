"""Whether a benchmark got slower: two files of results, record by record.

    python -m benchmarks.compare old.json new.json --fail-on-regression 3

What counts is the ratio to the ceiling of the same run: machines of one kind differ by some percent, ratios less so.
Needs no GPU. Exits with 1 where a record of jitmk has got worse by more than the given percentage (3 without a value).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arguments import number
from benchmarks.environment import command_output
from benchmarks.records import JITMK, Record, format_table, parse_records, read_records
from jitmk.errors import JitmkError

DEFAULT_PERCENT = 3.0


@dataclass(frozen=True)
class Change:
    """The same measurement before and now."""

    old: Record
    new: Record

    @property
    def percent(self) -> float:
        """By how much the ratio to the ceiling has grown: above 0 is worse."""
        return 100 * (self.new.ratio / self.old.ratio - 1)

    def regressed(self, percent: float) -> bool:
        """Whether this is jitmk's, and worse by more than that."""
        return self.new.baseline == JITMK and self.percent > percent


def changes(old: Sequence[Record], new: Sequence[Record]) -> list[Change]:
    """What both files hold, in the order of the new one."""
    before = {record.key: record for record in old}
    return [Change(before[record.key], record) for record in new if record.key in before]


def report(old: Sequence[Record], new: Sequence[Record], percent: float | None) -> int:
    """Prints what changed; returns the exit status: 1 for a regression, or where there was nothing to compare.

    Args:
        old, new: records of two runs.
        percent: what counts as a regression; None for nothing.
    """
    both = changes(old, new)
    rows = [["model", "context", "system", "us before", "us now", "ratio before", "ratio now", "change", ""]]
    for change in both:
        before, now = change.old, change.new
        rows.append(
            [
                now.model,
                str(now.context),
                now.baseline,
                f"{before.us_per_token:.1f}",
                f"{now.us_per_token:.1f}",
                f"{before.ratio:.3f}",
                f"{now.ratio:.3f}",
                f"{change.percent:+.1f} %",
                "REGRESSION" if percent is not None and change.regressed(percent) else "",
            ]
        )
    if both:
        print(format_table(rows))
    now_measured = {record.key for record in new}
    for record in old:
        if record.key not in now_measured:
            print(f"not measured this time: {record.baseline}, {record.model} at {record.context}")
    if not any(change.new.baseline == JITMK for change in both):
        print("no record of jitmk is in both: there is nothing to compare")
        return 0 if percent is None else 1
    if percent is None:
        return 0
    worse = sum(change.regressed(percent) for change in both)
    print(f"{worse} of jitmk's records are worse by more than {percent:g} %")
    return 1 if worse else 0


def committed_records(path: Path) -> list[Record] | None:
    """The records of a file of results as it was last committed, or as it is where git does not know.

    Returns:
        None where there is no such file. Raises BenchmarkError where it holds something else.
    """
    text = (
        command_output("git", "-C", str(path.parent), "show", f"HEAD:./{path.name}") if path.parent.is_dir() else None
    )
    if text is not None:
        return parse_records(text, f"{path} (committed)")
    return read_records(path) if path.exists() else None


def add_fail_on_regression(parser: argparse.ArgumentParser) -> None:
    """Adds --fail-on-regression [PERCENT]: a number, or None where it is not given."""
    parser.add_argument(
        "--fail-on-regression",
        type=number,
        nargs="?",
        const=DEFAULT_PERCENT,
        metavar="PERCENT",
        help="exit with 1 where jitmk's ratio to its ceiling got worse by more than this "
        f"({DEFAULT_PERCENT:g} without a value)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares two files; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="results of benchmarks.decode")
    parser.add_argument("new", type=Path, help="later ones")
    add_fail_on_regression(parser)
    args = parser.parse_args(arguments)
    try:
        return report(read_records(args.old), read_records(args.new), args.fail_on_regression)
    except JitmkError as error:
        print(f"benchmarks.compare: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
