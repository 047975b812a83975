"""Programs of one phase, or of a few: an opcode on its own, with everything around it taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from jitmk.model.spec import Activation
from jitmk.program.configs import ELEMENTWISE_VALUES, Epilogue, MatvecConfig, Prologue, ZeroConfig
from jitmk.program.isa import Opcode
from jitmk.program.packing import ceil_div, pack
from jitmk.program.program import Buffer, BufferKind, Phase, Program, Variant
from jitmk.program.weights import Join, Matrix, Vector, WeightPlan

NORM_EPS = 1e-5


def isolate(program: Program, *names: str) -> Program:
    """The phases of these names as a program of their own, with the same buffers and variants."""
    chosen = [phase for phase in program.phases if phase.name in names]
    assert len(chosen) == len(names), (names, [phase.name for phase in program.phases])
    return replace(program, phases=tuple(replace(phase, index=i) for i, phase in enumerate(chosen)))


def device_spread(phase: Phase, operand: str, spread: int) -> int:
    """How far apart the device code of a phase takes the sectors of a buffer to be, in a kernel of this WORD_SPREAD."""
    config, opcode = phase.variant.config, phase.variant.opcode
    if isinstance(config, MatvecConfig) and operand == "input":
        return config.input_spread
    if operand in ("lse", "lse_out"):
        return spread
    heads = opcode is Opcode.ATTENTION_REDUCE or (opcode is Opcode.ATTENTION and operand == "output")
    return spread if phase.buffers[operand].kind is BufferKind.BF16 and not heads else 1


def spread_out(program: Program, spread: int) -> Program:
    """The program with its buffers as a kernel of this WORD_SPREAD expects them."""
    spreads = {b.name: device_spread(phase, op, spread) for phase in program.phases for op, b in phase.buffers.items()}
    laid_out: dict[str, Buffer] = {}
    words = 0
    for buffer in program.buffers:
        laid_out[buffer.name] = replace(buffer, offset=words, spread=spreads.get(buffer.name, 1))
        words += laid_out[buffer.name].total_words
    phases = tuple(
        replace(phase, buffers={operand: laid_out[buffer.name] for operand, buffer in phase.buffers.items()})
        for phase in program.phases
    )
    return replace(program, phases=phases, buffers=tuple(laid_out.values()), arena_words=words)


OUTPUTS = ("output", "residual_out", "lse_out")
"""Operands that a phase writes; every other buffer is one that it reads."""


def inputs_of(program: Program) -> list[Buffer]:
    """Buffers that phases read and none of them writes."""
    written = {buffer.name for buffer in outputs_of(program)}
    read = [
        buffer
        for phase in program.phases
        for operand, buffer in phase.buffers.items()
        if operand not in OUTPUTS and buffer.name not in written
    ]
    return list({buffer.name: buffer for buffer in read}.values())


def outputs_of(program: Program) -> list[Buffer]:
    """Buffers that phases write."""
    return [buffer for phase in program.phases for operand, buffer in phase.buffers.items() if operand in OUTPUTS]


def in_buffer_order(phase: Phase, values: torch.Tensor, operand: str = "output") -> torch.Tensor:
    """Values in the order of the units that own them, [n], put where they lie in the phase's output."""
    spans = [span for unit in range(phase.units) for span in phase.writes(unit) if span.operand == operand]
    places = torch.cat([torch.arange(span.begin, span.end) for span in spans]).to(values.device)
    ordered = torch.full_like(values, torch.nan)
    ordered[places] = values
    return ordered


def matvec_variant(rows: int, columns: int, epilogue: Epilogue, name: str = "", **changes: Any) -> Variant:
    """A matvec, with as many copies of input and output as lowering gives it.

    Args:
        name: what is special about it.
        changes: of other fields of MatvecConfig.
    """
    projection = epilogue in (Epilogue.STORE, Epilogue.LOGITS)
    fields: dict[str, Any] = {
        "activation": Activation.SILU if epilogue in (Epilogue.GATED, Epilogue.ACTIVATED) else None,
        "input_copies": 2,
        "input_spread": 4,
        "output_copies": 1 if projection else 2,
        "residual_copies": 2 if changes.get("post") else 1,
    } | changes
    if fields.get("prologue", Prologue.NONE) is not Prologue.NONE or fields.get("post"):
        fields.setdefault("norm_eps", NORM_EPS)
    full = "-".join(part for part in (epilogue.value, f"{rows}x{columns}", name) if part)
    return Variant(full, Opcode.MATVEC, MatvecConfig(rows, columns, epilogue, **fields))


def matvec_program(variant: Variant) -> Program:
    """One matvec between buffers of its own; its matrix is "w", its vectors have the names of their operands."""
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
    elif config.output_copies:
        values = config.rows // 2 if config.epilogue is Epilogue.GATED else config.rows
        buffer("output", BufferKind.BF16, values, config.output_copies)
    if config.post is not None:
        buffer("residual_in", BufferKind.FP32, config.columns, config.residual_copies)
    if config.post_sum:
        buffer("residual_out", BufferKind.FP32, config.columns, config.residual_copies)
    if config.epilogue is Epilogue.RESIDUAL:
        buffer("residual_in", BufferKind.FP32, config.rows)
        buffer("residual_out", BufferKind.FP32, config.rows, config.residual_copies)
    phase = Phase(
        0,
        variant.name,
        variant,
        config.layout.units,
        buffers=buffers,
        matrices={"weights": "w"},
        vectors={name: name for name in _vectors(config)},
    )
    return Program((phase,), tuple(buffers.values()), (variant,), tokens=1, splits=1, arena_words=words)


def zero_program(variant: Variant) -> Program:
    """ZERO by itself, into a buffer of its own."""
    config = variant.config
    assert isinstance(config, ZeroConfig)
    output = Buffer("output", BufferKind.BF16, config.values, 1, config.output_copies, 64)
    units = ceil_div(config.values, ELEMENTWISE_VALUES)
    phase = Phase(0, variant.name, variant, units, buffers={"output": output})
    return Program((phase,), (output,), (variant,), tokens=1, splits=1, arena_words=64 + output.total_words)


def _vectors(config: MatvecConfig) -> dict[str, int]:
    """The constant vectors that a matvec uses, by operand, with their lengths."""
    used = {
        "norm": config.prologue is not Prologue.NONE,
        "norm_bias": config.norm_bias,
        "post_norm": config.post is not None,
        "post_norm_bias": config.post_bias,
    }
    lengths = {name: config.columns for name, there in used.items() if there}
    return lengths | ({"bias": config.rows} if config.bias else {})


def matvec_plan(config: MatvecConfig) -> WeightPlan:
    """Where the weights of `matvec_program` lie: not at the start of the arenas, so that offsets count."""
    matrix = Matrix("w", (), Join.STACK, config.layout, True, offset=4096)
    vectors: dict[str, Vector] = {}
    at = 16
    for name, values in _vectors(config).items():
        vectors[name] = Vector(name, (), Join.STACK, values, 0.0, offset=at)
        at += vectors[name].padded_values + 16
    return WeightPlan({"w": matrix}, vectors, matrix.offset + matrix.nbytes + 4096, at + 16)


def matvec_arenas(
    plan: WeightPlan, weights: torch.Tensor, vectors: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight arena bf16, constant arena fp32) of a plan of `matvec_plan`, NaN where nothing belongs to it."""
    matrix = plan.matrices["w"]
    arena = torch.full((plan.arena_bytes // 2,), torch.nan, dtype=torch.bfloat16, device=weights.device)
    arena[matrix.offset // 2 : (matrix.offset + matrix.nbytes) // 2] = pack(
        weights, chunk_limit=matrix.layout.chunk_limit
    ).flatten()
    constants = torch.full((plan.constant_values,), torch.nan, device=weights.device)
    for name, vector in plan.vectors.items():
        constants[vector.offset : vector.offset + vector.values] = vectors[name]
    return arena, constants
