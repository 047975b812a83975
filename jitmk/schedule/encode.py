"""Between a schedule and the instruction buffer that the kernel reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from jitmk.errors import ScheduleError
from jitmk.program import isa
from jitmk.program.isa import END_VARIANT, HEADER, INSTRUCTION_WORDS, NO_OPERAND, OPERANDS, Instruction, operand_index
from jitmk.program.program import BufferKind, Phase, Variant
from jitmk.program.weights import WeightPlan
from jitmk.schedule.schedule import Column, Schedule


def encode(schedule: Schedule, plan: WeightPlan, variants: Sequence[Variant]) -> torch.Tensor:
    """The instructions of every SM, as the kernel reads them.

    Candidates are numbered queue after queue.

    Args:
        schedule: a schedule that `verify` accepts.
        plan: where weights and constants lie.
        variants: the kernel's code, at least that which the program needs; an instruction's variant is an index.

    Returns:
        int32 [sms, length, 32] on the CPU; every queue ends with at least one end-of-queue instruction.

    Raises:
        ScheduleError: the kernel lacks a variant, the plan lacks a weight, or a word does not fit an int32.
    """
    table = schedule.table
    instructions = np.bincount(table.phase, minlength=len(schedule.program.phases))
    writers = {phase.buffers["output"].name: phase for phase in schedule.program.phases if "output" in phase.buffers}
    common = np.zeros((len(schedule.program.phases), INSTRUCTION_WORDS), dtype=np.int64)
    numbers = {variant: index for index, variant in enumerate(variants)}
    for phase in schedule.program.phases:
        if phase.variant not in numbers:
            raise ScheduleError(
                f"phase {phase.name!r} needs the variant {phase.variant.name!r}, which the kernel lacks"
            )
        candidates = 0
        if "candidates" in OPERANDS[phase.variant.opcode]:
            candidates = int(instructions[writers[phase.buffers["input"].name].index])
        common[phase.index, : len(HEADER)] = (numbers[phase.variant], phase.index, 0, 0, 0)
        operands = [_operand(name, phase, plan, candidates) for name in OPERANDS[phase.variant.opcode]]
        common[phase.index, len(HEADER) : len(HEADER) + len(operands)] = operands

    rows = common[table.phase]
    for name, column in (
        ("unit_begin", table.unit_begin),
        ("unit_count", table.unit_count),
        ("unit_stride", table.unit_stride),
    ):
        rows[:, HEADER.index(name)] = column
    _number_candidates(schedule, rows, table.phase)
    _check_range(rows)
    encoded = np.zeros((schedule.sms, schedule.longest_queue + 1, INSTRUCTION_WORDS), dtype=np.int32)
    encoded[:, :, 0] = END_VARIANT
    encoded[table.sm, table.place] = rows
    return torch.from_numpy(encoded)


def _operand(name: str, phase: Phase, plan: WeightPlan, candidates: int) -> int:
    """An operand that is the same for all instructions of a phase."""
    if name in phase.buffers:
        return phase.buffers[name].offset
    if name in phase.matrices:
        if phase.matrices[name] not in plan.matrices:
            raise ScheduleError(
                f"phase {phase.name!r} needs the matrix {phase.matrices[name]!r}, which the weights lack"
            )
        return plan.matrices[phase.matrices[name]].grain
    if name in phase.vectors:
        if phase.vectors[name] not in plan.vectors:
            raise ScheduleError(
                f"phase {phase.name!r} needs the vector {phase.vectors[name]!r}, which the weights lack"
            )
        return plan.vectors[phase.vectors[name]].offset
    if name in phase.numbers:
        return phase.numbers[name]
    if name == "layer" and phase.layer is not None:
        return phase.layer
    return {"splits": phase.splits, "candidates": candidates}.get(name, NO_OPERAND)


def _number_candidates(schedule: Schedule, rows: Column, phase_of_row: Column) -> None:
    for phase in schedule.program.phases:
        output = phase.buffers.get("output")
        if output is not None and output.kind is BufferKind.CANDIDATE:
            mine = np.flatnonzero(phase_of_row == phase.index)
            rows[mine, operand_index(phase.variant.opcode, "candidate")] = np.arange(len(mine))


def _check_range(rows: Column) -> None:
    if rows.size and not -(2**31) <= rows.min() <= rows.max() < 2**31:
        row, word = map(int, np.argwhere((rows < -(2**31)) | (rows >= 2**31))[0])
        raise ScheduleError(
            f"word {word} of an instruction of phase {rows[row, 1]} is {rows[row, word]}, which does not fit an int32"
        )


def decode(encoded: torch.Tensor, variants: Sequence[Variant]) -> tuple[tuple[Instruction, ...], ...]:
    """The instructions of every SM, up to the end of each queue.

    Args:
        encoded: int32 [sms, length, 32].
        variants: as given to `encode`.

    Raises:
        ScheduleError: a queue does not end, or a word is no variant.
    """
    opcodes = {index: variant.opcode for index, variant in enumerate(variants)}
    queues = []
    for sm, rows in enumerate(encoded.tolist()):
        queue: list[Instruction] = []
        for words in rows:
            if words[0] != END_VARIANT and words[0] not in opcodes:
                raise ScheduleError(
                    f"SM {sm}, instruction {len(queue)}: there is no variant {words[0]}; the kernel has {len(opcodes)}"
                )
            instruction = isa.decode(words, opcodes)
            if instruction is None:
                break
            queue.append(instruction)
        else:
            raise ScheduleError(f"SM {sm}: the queue of {len(rows)} instructions has no end-of-queue instruction")
        queues.append(tuple(queue))
    return tuple(queues)
