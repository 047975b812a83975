"""The default policy: round robin, but for what would leave SMs idle while a step waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from jitmk.program.configs import MatvecConfig
from jitmk.program.isa import Opcode
from jitmk.program.packing import ceil_div
from jitmk.program.program import Phase
from jitmk.schedule.cost import unit_cost
from jitmk.schedule.policies.base import Placement, PolicyInput, deal
from jitmk.schedule.policies.listing import fill_levels

FINE_UNITS = 8
"""Units an SM from which on a phase can make up for the remainder of another."""
UNEVEN = 1.1
"""How many times the mean the most units an SM have to be before another phase makes up for them."""
SHARE = 0.7
"""The part of an extra unit that is made up for. An SM that is done with one phase runs ahead into the next, but only
as far as its ring goes. Simulated, and measured on an H200 (docs/performance.md)."""


class Level:
    """As `RoundRobin`, but a step waits for the slowest SM of each phase, and who will be slow is known beforehand.

    - A projection's units may leave a large remainder: 192 units on 132 SMs are two on some and one on the others. SMs
      that get one more of them get fewer bytes of the phase before, if that has many units: they turn to their longer
      share earlier, and all SMs are through at about the same time.
    - SMs that attend, or merge, come late to the projection behind. They get none of its units if nobody gets more
      for it.
    """

    name = "level"

    def place(self, task: PolicyInput) -> list[list[Placement]]:
        placed: list[list[Placement]] = []
        start, phases = 0, task.program.phases
        for i, phase in enumerate(phases):
            order = everyone = [*range(start, task.sms), *range(start)]
            if i > 0 and phases[i - 1].variant.opcode in (Opcode.ATTENTION, Opcode.ATTENTION_REDUCE):
                order = _without({sm for sm, *_ in placed[-1]}, order, phase.units)
            extra = _extra_bytes(task, phase, phases[i + 1]) if i + 1 < len(phases) else 0.0
            if extra > 0:
                # The next phase is dealt from the same SM on: its extra units fall to the first.
                longer = set(everyone[: phases[i + 1].units % task.sms])
                starts = [SHARE * extra if sm in longer else 0.0 for sm in order]
                counts = fill_levels(starts, unit_cost(phase, task.context).bytes, phase.units)
                placed.append(_by_count(order, counts))
            else:
                placed.append(deal(phase.units, order))
                start = (order[(phase.units - 1) % len(order)] + 1) % task.sms
        return placed


def _without(busy: set[int], order: list[int], units: int) -> list[int]:
    """The SMs that are not busy, if they can take all units without any of them getting more than otherwise."""
    idle = [sm for sm in order if sm not in busy]
    return idle if idle and ceil_div(units, len(idle)) == ceil_div(units, len(order)) else order


def _extra_bytes(task: PolicyInput, phase: Phase, following: Phase) -> float:
    """What a unit of the following phase streams, if some SMs get one more of them and this phase makes up for it."""
    if not isinstance(following.variant.config, MatvecConfig) or phase.units < FINE_UNITS * task.sms:
        return 0.0
    most = ceil_div(following.units, task.sms)
    return unit_cost(following, task.context).bytes if most * task.sms > UNEVEN * following.units else 0.0


def _by_count(order: Sequence[int], counts: Sequence[int]) -> list[Placement]:
    """Units dealt in classes of SMs with the same count, so that each SM's are a progression."""
    classes: dict[int, list[int]] = defaultdict(list)
    for sm, count in zip(order, counts, strict=True):
        classes[count].append(sm)
    placed, begin = [], 0
    for count, sms in classes.items():
        if count:
            placed += [(sm, begin + i, count, len(sms)) for i, sm in enumerate(sms)]
            begin += count * len(sms)
    return placed
