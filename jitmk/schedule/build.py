"""From a program to a schedule, through a policy."""

from __future__ import annotations

from jitmk.arch import GpuArch
from jitmk.errors import ConfigError
from jitmk.program.isa import Opcode
from jitmk.program.program import Program
from jitmk.schedule.policies import POLICIES, PolicyInput
from jitmk.schedule.schedule import Schedule, from_placements

DEFAULT_POLICY = "level"


def make_schedule(
    program: Program, arch: GpuArch | int, policy: str = DEFAULT_POLICY, *, context: int = 1024
) -> Schedule:
    """Deals a program out to the SMs of a GPU.

    Args:
        program: the phases of a step.
        arch: the GPU, or its number of SMs.
        policy: a name in `POLICIES`.
        context: positions in the KV cache for which policies that weigh costs do so.

    Raises:
        ConfigError: no such policy, no SMs, or a barrier of another number of SMs.
    """
    sms = arch if isinstance(arch, int) else arch.sm_count
    if sms < 1:
        raise ConfigError(f"sms = {sms}; a schedule needs at least one SM")
    if policy not in POLICIES:
        raise ConfigError(f"there is no schedule policy {policy!r}; policies are {', '.join(sorted(POLICIES))}")
    for phase in program.phases:
        if phase.variant.opcode is Opcode.BARRIER and phase.units != sms:
            raise ConfigError(f"phase {phase.name!r} is a barrier of {phase.units} SMs, but the schedule is for {sms}")
    placements = list(POLICIES[policy].place(PolicyInput(program, sms, context)))
    for phase in program.phases:
        if phase.variant.opcode is Opcode.BARRIER:  # whatever the policy
            placements[phase.index] = [(sm, sm, 1, 1) for sm in range(phase.units)]
    return from_placements(program, sms, policy, placements)
