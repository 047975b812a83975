"""The programs of a live model, ready for the device: one for every number of splits that a context calls for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from jitmk.arch import GpuArch
from jitmk.codegen.abi import Wait, WarpRecord
from jitmk.model.spec import ModelSpec
from jitmk.program.fusion import Fusion
from jitmk.program.isa import Instruction
from jitmk.program.lowering import lower
from jitmk.program.program import Program, Variant
from jitmk.program.weights import WeightPlan
from jitmk.schedule.build import DEFAULT_POLICY, make_schedule
from jitmk.schedule.cost import choose_splits, split_ladder
from jitmk.schedule.encode import decode, encode
from jitmk.schedule.verify import verify


def kernel_variants(spec: ModelSpec, fused: bool | Fusion = True) -> tuple[Variant, ...]:
    """The code that a model's kernel holds: what its programs need, whatever the number of splits.

    Args:
        fused: as for `lower`.
    """
    variants: list[Variant] = []
    for splits in (1, 2):
        variants += [variant for variant in lower(spec, splits, fused=fused).variants if variant not in variants]
    return tuple(variants)


@dataclass(frozen=True)
class DeviceProgram:
    """A scheduled program whose queues lie on the device.

    Attributes:
        program: what is computed.
        queues: int32 [sms, length, 32].
        variants: the kernel's code, which the queues' instructions index.
    """

    program: Program
    queues: torch.Tensor
    variants: tuple[Variant, ...]

    def instruction(self, sm: int, index: int) -> Instruction | None:
        """An instruction of a queue; None past its end."""
        queue = decode(self.queues[sm : sm + 1].cpu(), self.variants)[0]
        return queue[index] if index < len(queue) else None

    def describe(self, sm: int, record: WarpRecord) -> tuple[str, str]:
        """Opcode with phase, and what was waited for, of a warp in a hang report."""
        operand = f"{record.wait.name.lower().replace('_', ' ')} {record.index}"
        if record.wait is Wait.TOKEN:
            return "between two steps", operand
        instruction = self.instruction(sm, record.instruction)
        if instruction is None:
            return "end of the queue", operand
        return f"{instruction.opcode.value} of {self.program.phases[instruction.phase].name}", operand


def prepare(
    program: Program,
    plan: WeightPlan,
    variants: tuple[Variant, ...],
    arch: GpuArch,
    device: torch.device,
    *,
    policy: str = DEFAULT_POLICY,
    context: int = 1024,
) -> DeviceProgram:
    """Schedules a program, verifies the schedule and puts it on the device.

    Raises:
        ScheduleError: the verifier refused the schedule.
    """
    schedule = make_schedule(program, arch, policy, context=context)
    verify(schedule)
    return DeviceProgram(program, encode(schedule, plan, variants).to(device), variants)


class StepPrograms:
    """Prepares programs when a context first calls for them, and keeps them; `fused` is as for `lower`."""

    def __init__(
        self,
        spec: ModelSpec,
        plan: WeightPlan,
        arch: GpuArch,
        device: torch.device,
        policy: str = DEFAULT_POLICY,
        fused: bool | Fusion = True,
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._arch = arch
        self._device = device
        self._policy = policy
        self._fused = fused
        self._by_splits: dict[int, DeviceProgram] = {}
        self.variants = kernel_variants(spec, fused)

    def splits(self, context: int) -> int:
        """Into how many parts attention splits a context of that many positions."""
        return choose_splits(self._spec, self._arch.sm_count, context)

    def largest_arena_words(self) -> int:
        """Words of the program that needs most of them: the one with the most splits."""
        splits = max(split_ladder(self._spec, self._arch.sm_count))
        return lower(self._spec, splits, fused=self._fused).arena_words

    def for_splits(self, splits: int) -> DeviceProgram:
        """The program with that many splits."""
        if splits not in self._by_splits:
            program = lower(self._spec, splits, fused=self._fused)
            self._by_splits[splits] = prepare(
                program, self._plan, self.variants, self._arch, self._device, policy=self._policy
            )
        return self._by_splits[splits]
