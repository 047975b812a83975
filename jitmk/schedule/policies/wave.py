"""The policy that gives each SM one contiguous range of units."""

from __future__ import annotations

from jitmk.schedule.policies.base import Placement, PolicyInput


class Wave:
    """Every SM computes a contiguous range of each phase, as long as the others' to within one unit.

    With fewer units than SMs the units spread over the whole GPU.
    """

    name = "wave"

    def place(self, task: PolicyInput) -> list[list[Placement]]:
        return [self._spread(phase.units, task.sms) for phase in task.program.phases]

    @staticmethod
    def _spread(units: int, sms: int) -> list[Placement]:
        bounds = [units * sm // sms for sm in range(sms + 1)]
        return [(sm, bounds[sm], bounds[sm + 1] - bounds[sm], 1) for sm in range(sms)]
