"""What a policy is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jitmk.program.program import Program
from jitmk.schedule.cost import TimeModel

Placement = tuple[int, int, int, int]
"""(sm, unit_begin, unit_count, unit_stride): what a phase puts on one SM."""


@dataclass(frozen=True)
class PolicyInput:
    """What a policy may look at.

    Attributes:
        program: the phases to deal out.
        sms: number of SMs, at least 1.
        context: positions in the KV cache that costs are estimated for.
        model: how long units take.
    """

    program: Program
    sms: int
    context: int = 1024
    model: TimeModel = field(default_factory=TimeModel)


class Policy(Protocol):
    """Deals the units of every phase to SMs. Queues follow the order of the program's phases whatever the policy."""

    @property
    def name(self) -> str:
        """The name by which `make_schedule` selects it."""

    def place(self, task: PolicyInput) -> Sequence[Sequence[Placement]]:
        """For each phase of the program, what it puts on the SMs: every unit exactly once."""


def deal(units: int, sms: Sequence[int]) -> list[Placement]:
    """Deals unit i to `sms[i % len(sms)]`: one strided progression for each SM."""
    stride = len(sms)
    return [(sm, i, (units - i + stride - 1) // stride, stride) for i, sm in enumerate(sms[:units])]
