"""Models of other families beside the Llama of the nearest size: what being another model costs.

What counts is the ratio to the ceiling at the same context: it may be worse than that Llama's by `ALLOWED_PERCENT`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.records import JITMK, BenchmarkError, Record, format_table, read_records
from benchmarks.shapes import nearest_llama

ALLOWED_PERCENT = 5.0


@dataclass(frozen=True)
class Beside:
    """A model, and the Llama of the nearest size at the same context."""

    record: Record
    llama: Record

    @property
    def percent(self) -> float:
        """By how much the model's ratio to its ceiling is above the Llama's: above 0 is worse."""
        return 100 * (self.record.ratio / self.llama.ratio - 1)

    @property
    def met(self) -> bool:
        """Whether it is no worse than it may be."""
        return self.percent <= ALLOWED_PERCENT


def beside_llamas(records: Sequence[Record], llamas: Sequence[Record]) -> list[Beside]:
    """Those of jitmk's records whose Llama was measured too, in their order."""
    by_key = {llama.key: llama for llama in llamas}
    keys = [(nearest_llama(record.model), *record.key[1:]) for record in records]
    return [
        Beside(record, by_key[key])
        for record, key in zip(records, keys, strict=True)
        if record.baseline == JITMK and key in by_key
    ]


def report(records: Sequence[Record], llamas: Path) -> None:
    """Prints the records beside those of a file of results of `benchmarks.decode`."""
    try:
        both = beside_llamas(records, read_records(llamas))
    except BenchmarkError as error:
        print(f"no Llamas to compare with: {error}")
        return
    rows = [["model", "context", "ratio", "nearest Llama", "ratio", "difference", ""]]
    for one in both:
        rows.append(
            [
                one.record.model,
                str(one.record.context),
                f"{one.record.ratio:.3f}",
                one.llama.model,
                f"{one.llama.ratio:.3f}",
                f"{one.percent:+.1f} %",
                "" if one.met else "MISSED",
            ]
        )
    print(format_table(rows))
    print(f"Llamas: {llamas}; a model may be {ALLOWED_PERCENT:g} % worse than its Llama")
