"""Two pools of SMs: one streams, the other computes."""

from __future__ import annotations

from collections.abc import Sequence

from jitmk.program.program import Phase
from jitmk.schedule.cost import unit_cost
from jitmk.schedule.policies.base import Placement, PolicyInput, deal


class Pool:
    """Memory-bound phases on some SMs, phases bound by latency or arithmetic on the others.

    Streaming SMs never stop for attention or a merge: their rings run ahead through it. The pools' sizes are in
    proportion to the time that the cost model gives each class, at least one SM each; if a program has but one class,
    or the GPU but one SM, all SMs form one pool. Within a pool units are dealt as by round robin.
    """

    name = "pool"

    def place(self, task: PolicyInput) -> list[list[Placement]]:
        memory = [_is_memory_bound(task, phase) for phase in task.program.phases]
        pools = _pools(task, memory)
        starts = {True: 0, False: 0}
        placed = []
        for phase, bound in zip(task.program.phases, memory, strict=True):
            pool, start = pools[bound], starts[bound]
            placed.append(deal(phase.units, [*pool[start:], *pool[:start]]))
            starts[bound] = (start + phase.units) % len(pool)
        return placed


def _is_memory_bound(task: PolicyInput, phase: Phase) -> bool:
    per_sm = -(-phase.units // task.sms)
    return task.model.is_memory_bound(unit_cost(phase, task.context), per_sm)


def _pools(task: PolicyInput, memory: Sequence[bool]) -> dict[bool, list[int]]:
    """The SMs for memory-bound phases (key True) and for the others (False)."""
    everyone = list(range(task.sms))
    if task.sms == 1 or all(memory) or not any(memory):
        return {True: everyone, False: everyone}
    time = {True: 0.0, False: 0.0}
    for phase, bound in zip(task.program.phases, memory, strict=True):
        time[bound] += phase.units * task.model.unit_us(unit_cost(phase, task.context))
    share = time[False] / (time[True] + time[False])
    compute = min(task.sms - 1, max(1, round(task.sms * share)))
    return {True: everyone[compute:], False: everyone[:compute]}
