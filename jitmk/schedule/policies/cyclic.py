"""Policies that deal units one by one, like cards."""

from __future__ import annotations

from jitmk.schedule.policies.base import Placement, PolicyInput, deal


class RoundRobin:
    """Unit i goes to the next SM, and the next phase goes on where the last one ended.

    So the units that are left over when a phase does not divide by the number of SMs fall to other SMs each time.
    """

    name = "round_robin"

    def place(self, task: PolicyInput) -> list[list[Placement]]:
        placed, start = [], 0
        for phase in task.program.phases:
            order = [*range(start, task.sms), *range(start)]
            placed.append(deal(phase.units, order))
            start = (start + phase.units) % task.sms
        return placed


class Zigzag:
    """Like dealing along a table and back: one phase from the first SM on, the next from the last SM backwards."""

    name = "zigzag"

    def place(self, task: PolicyInput) -> list[list[Placement]]:
        forward, backward = list(range(task.sms)), list(reversed(range(task.sms)))
        return [deal(phase.units, backward if phase.index % 2 else forward) for phase in task.program.phases]
