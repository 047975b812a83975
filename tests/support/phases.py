"""Programs of one phase, or of a few: an opcode on its own, with everything around it taken away."""

from __future__ import annotations

from dataclasses import replace

import torch

from jitmk.model.spec import Activation
from jitmk.program.isa import Opcode
from jitmk.program.packing import MatrixLayout, pack
from jitmk.program.program import Buffer, BufferKind, Epilogue, MatvecConfig, Phase, Program, Variant
from jitmk.program.weights import Join, Matrix, Vector, WeightPlan

NORM_EPS = 1e-5


def isolate(program: Program, *names: str) -> Program:
    """The phases of these names as a program of their own, with the same buffers and variants."""
    chosen = [phase for phase in program.phases if phase.name in names]
    assert len(chosen) == len(names), (names, [phase.name for phase in program.phases])
    return replace(program, phases=tuple(replace(phase, index=i) for i, phase in enumerate(chosen)))


def inputs_of(program: Program) -> list[Buffer]:
    """Buffers that phases read and none of them writes."""
    written = {buffer.name for buffer in outputs_of(program)}
    read = [
        buffer
        for phase in program.phases
        for operand, buffer in phase.buffers.items()
        if operand in ("input", "residual_in") and buffer.name not in written
    ]
    return list(dict.fromkeys(read))


def outputs_of(program: Program) -> list[Buffer]:
    """Buffers that phases write."""
    return [
        buffer
        for phase in program.phases
        for operand, buffer in phase.buffers.items()
        if operand in ("output", "residual_out")
    ]


def in_buffer_order(phase: Phase, values: torch.Tensor) -> torch.Tensor:
    """Values in the order of the units that own them, [n], put where they lie in the phase's output."""
    name = phase.buffers["output"].name
    spans = [span for unit in range(phase.units) for span in phase.writes(unit) if span.buffer == name]
    places = torch.cat([torch.arange(span.begin, span.end) for span in spans]).to(values.device)
    ordered = torch.full_like(values, torch.nan)
    ordered[places] = values
    return ordered


def matvec_variant(rows: int, columns: int, epilogue: Epilogue, *, norm: bool = False, bias: bool = False) -> Variant:
    """A matvec, with as many copies of input and output as lowering gives it."""
    config = MatvecConfig(
        rows,
        columns,
        epilogue,
        norm,
        NORM_EPS if norm else 0.0,
        bias,
        Activation.SILU if epilogue is Epilogue.GATED else None,
        input_copies=2,
        output_copies=1 if epilogue in (Epilogue.STORE, Epilogue.LOGITS) else 2,
    )
    flags = "".join(f"-{name}" for name, there in (("norm", norm), ("bias", bias)) if there)
    return Variant(f"{epilogue.value}-{rows}x{columns}{flags}", Opcode.MATVEC, config)


def matvec_program(variant: Variant) -> Program:
    """One matvec between buffers of its own; its matrix is "w", its vectors "norm" and "bias"."""
    config = variant.config
    assert isinstance(config, MatvecConfig)
    buffers: dict[str, Buffer] = {}
    words = 0

    def buffer(operand: str, kind: BufferKind, values: int, copies: int = 1) -> None:
        nonlocal words
        buffers[operand] = Buffer(operand, kind, values, 1, copies, words)
        words += buffers[operand].total_words

    buffer("input", BufferKind.BF16, config.columns, config.input_copies)
    if config.epilogue is Epilogue.LOGITS:
        buffer("output", BufferKind.CANDIDATE, config.rows)
    else:
        values = config.rows // 2 if config.epilogue is Epilogue.GATED else config.rows
        buffer("output", BufferKind.BF16, values, config.output_copies)
    if config.epilogue is Epilogue.RESIDUAL:
        buffer("residual_in", BufferKind.FP32, config.rows)
        buffer("residual_out", BufferKind.FP32, config.rows)
    phase = Phase(
        0,
        variant.name,
        variant,
        config.layout.units,
        buffers=buffers,
        weights="w",
        norm="norm" if config.norm else None,
        bias="bias" if config.bias else None,
    )
    return Program((phase,), tuple(buffers.values()), (variant,), tokens=1, splits=1, arena_words=words)


def matvec_plan(config: MatvecConfig) -> WeightPlan:
    """Where the weights of `matvec_program` lie: not at the start of the arenas, so that offsets count."""
    layout = MatrixLayout(config.rows, config.columns)
    matrix = Matrix("w", (), Join.STACK, layout, True, offset=4096)
    norm = Vector("norm", (), Join.STACK, config.columns, offset=16)
    bias = Vector("bias", (), Join.STACK, config.rows, offset=32 + norm.padded_values)
    end = bias.offset + bias.padded_values
    return WeightPlan({"w": matrix}, {"norm": norm, "bias": bias}, matrix.offset + matrix.nbytes + 4096, end + 16)


def matvec_arenas(
    plan: WeightPlan, weights: torch.Tensor, norm: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight arena bf16, constant arena fp32) of a plan of `matvec_plan`, NaN where nothing belongs to it."""
    matrix = plan.matrices["w"]
    arena = torch.full((plan.arena_bytes // 2,), torch.nan, dtype=torch.bfloat16, device=weights.device)
    arena[matrix.offset // 2 : (matrix.offset + matrix.nbytes) // 2] = pack(weights).flatten()
    constants = torch.full((plan.constant_values,), torch.nan, device=weights.device)
    for name, values in (("norm", norm), ("bias", bias)):
        vector = plan.vectors[name]
        constants[vector.offset : vector.offset + vector.values] = values
    return arena, constants
