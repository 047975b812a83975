"""What the units of a phase read and write, as columns of intervals: `Phase.reads` and `Phase.writes` for all units.

The phases of a model's layers differ in their buffers' names only, so the intervals are computed once for each kind
of phase and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from jitmk.program.access import Span
from jitmk.program.program import Buffer, Phase
from jitmk.schedule.schedule import Column


@dataclass(frozen=True, eq=False)
class Intervals:
    """Intervals of values of one buffer, [begin, end), and the unit that each belongs to: int64 [intervals] each."""

    unit: Column
    begin: Column
    end: Column


@dataclass(frozen=True, eq=False)
class Runs:
    """Disjoint intervals that do not even touch, in ascending order: int64 [runs] each."""

    begin: Column
    end: Column

    def cover(self, intervals: Intervals) -> npt.NDArray[np.bool_]:
        """Which of the intervals lie within one run."""
        if not len(self.begin):
            return np.zeros(len(intervals.begin), dtype=np.bool_)
        run = np.searchsorted(self.begin, intervals.begin, side="right") - 1
        return (run >= 0) & (intervals.end <= self.end[run])

    def touch(self, intervals: Intervals) -> npt.NDArray[np.bool_]:
        """Which of the intervals have a value in common with a run."""
        if not len(self.begin):
            return np.zeros(len(intervals.begin), dtype=np.bool_)
        run = np.searchsorted(self.begin, intervals.end, side="left") - 1
        return (run >= 0) & (intervals.begin < self.end[run])


def merge(parts: Sequence[Intervals]) -> Runs:
    """The values that the intervals hold together."""
    if len(parts) == 1:
        return _merge_one(parts[0])
    if not parts:
        return Runs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    return _merge(np.concatenate([part.begin for part in parts]), np.concatenate([part.end for part in parts]))


@lru_cache(maxsize=256)
def _merge_one(intervals: Intervals) -> Runs:
    return _merge(intervals.begin, intervals.end)


def _merge(begin: Column, end: Column) -> Runs:
    order = np.argsort(begin, kind="stable")
    begin, reach = begin[order], np.maximum.accumulate(end[order])
    first = np.concatenate(([True], begin[1:] > reach[:-1]))
    last = np.concatenate((first[1:], [True]))
    return Runs(begin[first], reach[last])


@dataclass(frozen=True)
class PhaseSpans:
    """By buffer operand (a name in `isa.OPERANDS`): what the phase's units read and write of it."""

    reads: Mapping[str, Intervals]
    writes: Mapping[str, Intervals]


def phase_spans(phase: Phase) -> PhaseSpans:
    """The intervals that all units of a phase read and write.

    Phases with the same variant, units, splits, operand `first` and buffer shapes share the result: do not change its
    arrays.
    """
    shapes = tuple((name, replace(buffer, name=name, offset=0)) for name, buffer in sorted(phase.buffers.items()))
    return _spans(_Kind(phase, shapes))


@dataclass(frozen=True, eq=False)
class _Kind:
    """A phase up to the names and places of its buffers, as a key."""

    phase: Phase
    shapes: tuple[tuple[str, Buffer], ...]

    @property
    def _key(self) -> tuple[object, ...]:
        return self.phase.variant, self.phase.units, self.phase.splits, self.phase.numbers.get("first"), self.shapes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=256)
def _spans(kind: _Kind) -> PhaseSpans:
    return PhaseSpans(_collect(kind.phase.units, kind.phase.reads), _collect(kind.phase.units, kind.phase.writes))


def _collect(units: int, spans: Callable[[int], tuple[Span, ...]]) -> dict[str, Intervals]:
    rows: dict[str, list[tuple[int, int, int]]] = {}
    for unit in range(units):
        for span in spans(unit):
            rows.setdefault(span.operand, []).append((unit, span.begin, span.end))
    collected = {}
    for operand, intervals in rows.items():
        columns = np.array(intervals, dtype=np.int64)
        collected[operand] = Intervals(columns[:, 0], columns[:, 1], columns[:, 2])
    return collected
