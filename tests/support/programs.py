"""Programs that no model lowers to, and ways to spoil schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jitmk.program.configs import EmbedConfig, Epilogue, MatvecConfig, SampleConfig
from jitmk.program.isa import Opcode
from jitmk.program.program import Buffer, BufferKind, Phase, Program, Variant
from jitmk.schedule.schedule import Assignment, Schedule

HIDDEN, SIDE, VOCAB = 64, 16, 40


def branching_program() -> Program:
    """embed, then two projections "left" and "right" that do not depend on each other, then what joins them."""
    buffers: dict[str, Buffer] = {}
    words = 0

    def buffer(name: str, kind: BufferKind, values: int) -> Buffer:
        nonlocal words
        buffers[name] = Buffer(name, kind, values, 1, 1, words)
        words += buffers[name].total_words
        return buffers[name]

    bf16, fp32 = BufferKind.BF16, BufferKind.FP32
    x, total = buffer("x", bf16, HIDDEN), buffer("x.sum", fp32, HIDDEN)
    left, right = buffer("left", bf16, SIDE), buffer("right", bf16, SIDE)
    one, one_sum = buffer("one", bf16, HIDDEN), buffer("one.sum", fp32, HIDDEN)
    both, both_sum = buffer("both", bf16, HIDDEN), buffer("both.sum", fp32, HIDDEN)
    head = buffer("head", BufferKind.CANDIDATE, VOCAB)

    embed = Variant("embed", Opcode.EMBED, EmbedConfig(VOCAB, HIDDEN, False, 1))
    side = Variant("side", Opcode.MATVEC, MatvecConfig(SIDE, HIDDEN, Epilogue.STORE))
    join = Variant("join", Opcode.MATVEC, MatvecConfig(HIDDEN, SIDE, Epilogue.RESIDUAL))
    lm_head = Variant("lm_head", Opcode.MATVEC, MatvecConfig(VOCAB, HIDDEN, Epilogue.LOGITS))
    sample = Variant("sample", Opcode.SAMPLE, SampleConfig(VOCAB))

    def operands(x: Buffer, y: Buffer, residual: Buffer | None = None, sum_: Buffer | None = None) -> dict[str, Buffer]:
        named = {"input": x, "output": y, "residual_in": residual, "residual_out": sum_}
        return {name: buffer for name, buffer in named.items() if buffer is not None}

    phases = (
        Phase(0, "embed", embed, 8, buffers={"output": x, "residual_out": total}),
        Phase(1, "left", side, 2, buffers=operands(x, left)),
        Phase(2, "right", side, 2, buffers=operands(x, right)),
        Phase(3, "join_left", join, 8, buffers=operands(left, one, total, one_sum)),
        Phase(4, "join_right", join, 8, buffers=operands(right, both, one_sum, both_sum)),
        Phase(5, "lm_head", lm_head, 5, buffers=operands(both, head)),
        Phase(6, "sample", sample, 1, buffers={"input": head}),
    )
    return Program(phases, tuple(buffers.values()), (embed, side, join, lm_head, sample), 1, 1, words)


def with_phase(program: Program, index: int, phase: Phase) -> Program:
    """The program with another phase in a place."""
    return replace(program, phases=(*program.phases[:index], phase, *program.phases[index + 1 :]))


def with_queue(schedule: Schedule, sm: int, queue: Sequence[Assignment]) -> Schedule:
    """The schedule with another queue on an SM."""
    return replace(schedule, queues=(*schedule.queues[:sm], tuple(queue), *schedule.queues[sm + 1 :]))


def phase_index(program: Program, name: str) -> int:
    """Index of a phase by name."""
    return next(phase.index for phase in program.phases if phase.name == name)


def place_of(schedule: Schedule, phase: int) -> tuple[int, int]:
    """An SM that has an instruction of a phase, and the instruction's place in its queue."""
    return next(
        (sm, place)
        for sm, queue in enumerate(schedule.queues)
        for place, assignment in enumerate(queue)
        if assignment.phase == phase
    )
