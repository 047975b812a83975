"""The default policy: round robin, but for what would leave SMs idle while a step waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from jitmk.program.configs import MatvecConfig
from jitmk.program.isa import Opcode
from jitmk.program.packing import CONSUMER_WARPS, ceil_div
from jitmk.program.program import Phase
from jitmk.schedule.cost import attend_apart, unit_cost
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
    - Where units are a warp's own, a step takes the time that words take from SM to SM, and SMs have room for more
      units at no expense. Then some attend and do nothing else, so that they are there when queries come; or no more
      than it takes to save the others a second round.
    """

    name = "level"

    def place(self, task: PolicyInput) -> list[list[Placement]]:
        placed: list[list[Placement]] = []
        start, phases = 0, task.program.phases
        attending = _attending(task)
        for i, phase in enumerate(phases):
            order = everyone = [*range(start, task.sms), *range(start)]
            if attending and phase.layer is not None:
                if phase.variant.opcode in (Opcode.ATTENTION, Opcode.ATTENTION_REDUCE):
                    placed.append(deal(phase.units, attending))
                    continue
                order = _without(attending, order, phase, helping=True)
            elif i > 0 and phases[i - 1].variant.opcode in (Opcode.ATTENTION, Opcode.ATTENTION_REDUCE):
                order = _without([sm for sm, *_ in placed[-1]], order, phase, helping=False)
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


def _attending(task: PolicyInput) -> list[int]:
    """The SMs that do nothing but attend in the layers; none where steps are not all latency, or too many attend."""
    phases = task.program.phases
    units = max((phase.units for phase in phases if phase.variant.opcode is Opcode.ATTENTION), default=0)
    narrow = any(_own_units(phase) for phase in phases)
    return list(range(task.sms - units, task.sms)) if narrow and attend_apart(units, task.sms) else []


def _own_units(phase: Phase) -> bool:
    return isinstance(phase.variant.config, MatvecConfig) and phase.variant.config.own_units


def _without(busy: Sequence[int], order: list[int], phase: Phase, *, helping: bool) -> list[int]:
    """The SMs that are not busy, if they can take all units without any of them needing longer than otherwise.

    Units of consumer warps are computed side by side. If they cannot, busy ones have their turn like all, or come last
    if they are only `helping`.
    """
    idle = [sm for sm in order if sm not in busy]
    at_once = CONSUMER_WARPS if _own_units(phase) else 1
    rounds = [ceil_div(phase.units, at_once * max(1, len(sms))) for sms in (idle, order)]
    if idle and rounds[0] == rounds[1]:
        return idle
    return [*idle, *busy] if helping else order


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
