"""Barriers between phases, to look for a dependency that is missing: with them, no two phases ever overlap."""

from __future__ import annotations

from dataclasses import replace

from jitmk.program.configs import BarrierConfig
from jitmk.program.isa import Opcode
from jitmk.program.program import Buffer, BufferKind, Phase, Program, Variant


def with_barriers(program: Program, sms: int) -> Program:
    """The program with a barrier of `sms` SMs behind every phase but the last.

    Args:
        sms: SMs of the GPU; a schedule of the result is for exactly as many.
    """
    variant = Variant("barrier", Opcode.BARRIER, BarrierConfig(sms))
    phases: list[Phase] = []
    buffers, words = list(program.buffers), program.arena_words
    for phase in program.phases:
        phases.append(replace(phase, index=len(phases)))
        if phase is program.phases[-1]:
            break
        name = f"{phase.name}.barrier"
        buffers.append(Buffer(f"{name}.output", BufferKind.FP32, sms, program.tokens, 1, words))
        words += buffers[-1].total_words
        phases.append(Phase(len(phases), name, variant, sms, phase.layer, {"output": buffers[-1]}))
    return replace(
        program,
        phases=tuple(phases),
        buffers=tuple(buffers),
        variants=(*program.variants, variant),
        arena_words=words,
    )
