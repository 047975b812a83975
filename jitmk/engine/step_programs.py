"""The programs of a live model, ready for the device: one for every number of splits that a context calls for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch

from jitmk.arch import GpuArch
from jitmk.codegen.abi import Wait, WarpRecord
from jitmk.model.spec import ModelSpec
from jitmk.program.configs import SampleConfig
from jitmk.program.fusion import Fusion
from jitmk.program.isa import HEADER, Instruction, Opcode
from jitmk.program.lowering import lower
from jitmk.program.program import Program, Variant
from jitmk.program.weights import WeightPlan
from jitmk.schedule.build import DEFAULT_POLICY, make_schedule
from jitmk.schedule.cost import split_ladder
from jitmk.schedule.encode import decode, encode
from jitmk.schedule.verify import verify

if TYPE_CHECKING:
    from jitmk.engine.tuning import Tuning


@lru_cache(maxsize=8)
def kernel_variants(spec: ModelSpec, fused: bool | Fusion = True) -> tuple[Variant, ...]:
    """The code that a model's kernel holds: what its programs need, whatever the number of splits.

    Args:
        fused: as for `lower`.
    """
    variants: list[Variant] = []
    merged = Fusion.of(spec, fused).merged_splits
    for splits in sorted({1, merged, merged + 1}):
        variants += [variant for variant in lower(spec, splits, fused=fused).variants if variant not in variants]
    return tuple(variants)


@dataclass(frozen=True)
class Head:
    """What sampling filters must know of the LM head.

    Attributes:
        vocab_size: its rows.
        instructions: in how many instructions it is dealt out, one on an SM.
    """

    vocab_size: int
    instructions: int


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

    @cached_property
    def head(self) -> Head:
        """The LM head, as the instruction that samples knows it."""
        phase = next(phase for phase in self.program.phases if phase.variant.opcode is Opcode.SAMPLE)
        assert isinstance(phase.variant.config, SampleConfig)
        variant, number = (self.queues[:, :, HEADER.index(name)] for name in ("variant", "phase"))
        sm, place = (int(i) for i in ((variant >= 0) & (number == phase.index)).nonzero()[0])
        sampler = self.instruction(sm, place)
        assert sampler is not None
        return Head(phase.variant.config.vocab_size, sampler.operands["candidates"])

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
    """Prepares programs when a context first calls for them, or before (`expect`), and keeps them.

    Args:
        fused: as for `lower`.

    Attributes:
        tuning: the choices that programs follow; another may take its place at any time between two launches.
        variants: of the kernel that runs them all.
    """

    def __init__(
        self,
        spec: ModelSpec,
        plan: WeightPlan,
        arch: GpuArch,
        device: torch.device,
        tuning: Tuning,
        fused: bool | Fusion = True,
    ) -> None:
        self.tuning = tuning
        self.variants = kernel_variants(spec, fused)
        self._spec = spec
        self._plan = plan
        self._arch = arch
        self._device = device
        self._fused = fused
        self._programs: dict[tuple[str, int], Future[DeviceProgram]] = {}
        self._thread = ThreadPoolExecutor(1, "jitmk-prepare")

    def largest_arena_words(self) -> int:
        """Words of the program that needs most of them: the one with the most splits, or with the most that have
        several copies."""
        most = max(split_ladder(self._spec, self._arch.sm_count))
        merged = Fusion.of(self._spec, self._fused).merged_splits
        largest = {most, min(most, merged)} if merged > 1 else {most}
        return max(lower(self._spec, splits, fused=self._fused).arena_words for splits in largest)

    def for_context(self, context: int) -> DeviceProgram:
        """The program for a context of that many positions."""
        return self.for_splits(self.tuning.splits(context))

    def for_splits(self, splits: int) -> DeviceProgram:
        """The program with that many splits."""
        return self._program(splits).result()

    def expect(self, first: int, last: int) -> None:
        """Begins to prepare, in another thread, what contexts from `first` to `last` will call for.

        A generation that grows past a step of the tuning then need not wait for a program.
        """
        for splits in self.tuning.splits_between(first, last):
            self._program(splits)

    def close(self) -> None:
        """Ends the thread; what is under way is finished."""
        self._thread.shutdown(cancel_futures=True)

    def _program(self, splits: int) -> Future[DeviceProgram]:
        key = self.tuning.policy, splits
        if key not in self._programs:
            self._programs[key] = self._thread.submit(self._prepare, *key)
        return self._programs[key]

    def _prepare(self, policy: str, splits: int) -> DeviceProgram:
        program = lower(self._spec, splits, fused=self._fused)
        return prepare(program, self._plan, self.variants, self._arch, self._device, policy=policy)
