"""A schedule: which SM computes which units of each phase, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from jitmk.program.program import Program

Column = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Assignment:
    """What one SM does of one phase: the units `unit_begin + i * unit_stride` for i < `unit_count`.

    Attributes:
        phase: index of the phase in the program.
        unit_begin, unit_count, unit_stride: a progression of the phase's units, `unit_count` and `unit_stride`
            at least 1.
    """

    phase: int
    unit_begin: int
    unit_count: int
    unit_stride: int

    @property
    def units(self) -> range:
        """The units, in the order in which the SM computes them."""
        return range(self.unit_begin, self.unit_begin + self.unit_count * self.unit_stride, self.unit_stride)


@dataclass(frozen=True)
class ScheduleTable:
    """The assignments of a schedule as columns, queue after queue: what the verifier and the encoder work on.

    Attributes:
        lengths: int64 [sms], assignments of each queue.
        sm, place: int64 [assignments], the SM, and the place in its queue.
        phase, unit_begin, unit_count, unit_stride: int64 [assignments].
    """

    lengths: Column
    sm: Column
    place: Column
    phase: Column
    unit_begin: Column
    unit_count: Column
    unit_stride: Column


@dataclass(frozen=True)
class Schedule:
    """The queues of one step, one for each SM.

    Attributes:
        program: what is computed.
        sms: number of queues.
        policy: name of the policy that dealt the units.
        queues: for each SM its assignments in order; a queue may be empty.
    """

    program: Program
    sms: int
    policy: str
    queues: tuple[tuple[Assignment, ...], ...]

    @cached_property
    def table(self) -> ScheduleTable:
        """The same assignments as columns."""
        lengths = np.array([len(queue) for queue in self.queues], dtype=np.int64)
        rows = [(a.phase, a.unit_begin, a.unit_count, a.unit_stride) for queue in self.queues for a in queue]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 4)
        first = lengths.cumsum() - lengths
        sm = np.repeat(np.arange(len(self.queues)), lengths)
        place = np.arange(len(rows)) - first[sm]
        return ScheduleTable(lengths, sm, place, columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3])

    @property
    def longest_queue(self) -> int:
        """Assignments of the longest queue."""
        return max((len(queue) for queue in self.queues), default=0)


def from_placements(
    program: Program, sms: int, policy: str, placements: Sequence[Sequence[tuple[int, int, int, int]]]
) -> Schedule:
    """Builds the queues from what each phase puts on the SMs.

    Args:
        placements: for each phase of the program, in its order: (sm, unit_begin, unit_count, unit_stride);
            entries without units are left out.
    """
    queues: list[list[Assignment]] = [[] for _ in range(sms)]
    for phase, placed in enumerate(placements):
        for sm, begin, count, stride in placed:
            if count > 0:
                queues[sm].append(Assignment(phase, begin, count, stride if count > 1 else 1))
    return Schedule(program, sms, policy, tuple(tuple(queue) for queue in queues))
