"""List scheduling: the next unit goes to the SM that is free first, by the cost model.

Graham, "Bounds on Multiprocessing Timing Anomalies", 1969. Phases are taken in the program's order, which is a
topological order of their graph, so that phases that do not depend on each other overlap where SMs are free.
"""

from __future__ import annotations

import heapq

from jitmk.program.program import Phase
from jitmk.schedule.cost import unit_cost
from jitmk.schedule.policies.base import Placement, PolicyInput


class ListScheduling:
    """Gives each SM one contiguous range per phase, longer where the SM was idle before.

    An SM may begin to stream a phase's weights before the phase's inputs are there, but only as far ahead as its
    ring holds: that is the earliest start that the model uses.
    """

    name = "list"

    def place(self, task: PolicyInput) -> list[list[Placement]]:
        free = [0.0] * task.sms
        ready = _ReadyTimes()
        placed = []
        for phase in task.program.phases:
            unit_us = max(task.model.unit_us(unit_cost(phase, task.context)), 1e-3)
            inputs_ready = ready.of(phase)
            earliest = inputs_ready - task.model.ring_us
            start = [max(at, earliest) for at in free]
            counts = fill_levels(start, unit_us, phase.units)
            placed.append(_ranges(counts))
            finish = inputs_ready
            for sm, count in enumerate(counts):
                if count:
                    # All its weights may lie in the ring already, but the last dot product follows the input.
                    free[sm] = max(start[sm] + count * unit_us, inputs_ready)
                    finish = max(finish, free[sm])
            ready.publish(phase, finish + task.model.phase_latency_us)
        return placed


class _ReadyTimes:
    """When the buffers that phases have written so far can be read."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def of(self, phase: Phase) -> float:
        """When everything is there that the phase's first and last unit read."""
        spans = (*phase.reads(0), *phase.reads(phase.units - 1))
        return max((self._at.get(span.buffer, 0.0) for span in spans), default=0.0)

    def publish(self, phase: Phase, at: float) -> None:
        for span in phase.writes(0):
            self._at[span.buffer] = max(at, self._at.get(span.buffer, 0.0))


def fill_levels(start: list[float], unit: float, units: int) -> list[int]:
    """How many of `units` equal units go to each SM if each goes to the SM that is free first.

    Args:
        start: when each SM is free.
        unit: the time of one unit, above 0.
        units: how many there are.

    Returns:
        The counts, in the order of `start`; ties go to the SM with the lower index.
    """
    # Most units at once: as in filling a vessel of uneven floor, up to a level that surely leaves some over.
    order = sorted(range(len(start)), key=start.__getitem__)
    total, used, level = 0.0, 0, 0.0
    for used, sm in enumerate(order, 1):
        total += start[sm]
        level = (total + units * unit) / used
        if used == len(order) or start[order[used]] >= level:
            break
    counts = [0] * len(start)
    for sm in order[:used]:
        counts[sm] = max(0, int((level - start[sm]) / unit) - 1)
    # The rest, fewer than three units per SM, one by one.
    heap = [(at + count * unit, sm) for sm, (at, count) in enumerate(zip(start, counts, strict=True))]
    heapq.heapify(heap)
    for _ in range(units - sum(counts)):
        at, sm = heap[0]
        counts[sm] += 1
        heapq.heapreplace(heap, (at + unit, sm))
    return counts


def _ranges(counts: list[int]) -> list[Placement]:
    placed, begin = [], 0
    for sm, count in enumerate(counts):
        if count:
            placed.append((sm, begin, count, 1))
            begin += count
    return placed
