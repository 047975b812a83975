"""Which values the units of each opcode read and write: all that the verifier and the CPU machines know of a phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jitmk.program.configs import (
    ELEMENTWISE_VALUES,
    LSE_WORDS,
    ActivateConfig,
    AddConfig,
    AttentionConfig,
    AttentionReduceConfig,
    BarrierConfig,
    CopyConfig,
    EmbedConfig,
    Epilogue,
    GatedActivateConfig,
    KvAppendConfig,
    MatvecConfig,
    NoOpConfig,
    NormConfig,
    ResidualAddConfig,
    ResidualNormAddConfig,
    RopeConfig,
    SampleConfig,
    ZeroConfig,
)
from jitmk.program.packing import UNIT_ROWS

if TYPE_CHECKING:
    from jitmk.program.program import Phase


@dataclass(frozen=True)
class Span:
    """Values [begin, end) of the buffer that a phase calls `operand`, the same of every token."""

    operand: str
    buffer: str
    begin: int
    end: int


Spans = tuple[Span, ...]


def reads(phase: Phase, unit: int) -> Spans:
    """What a unit reads of other phases' outputs in the same step."""
    return _ACCESS[type(phase.variant.config)][0](phase, phase.variant.config, unit)


def writes(phase: Phase, unit: int) -> Spans:
    """What a unit writes for other phases of the same step: of the outputs, those that it has a buffer for."""
    return _ACCESS[type(phase.variant.config)][1](phase, phase.variant.config, unit)


def _span(phase: Phase, operand: str, begin: int, end: int) -> Span:
    return Span(operand, phase.buffers[operand].name, begin, end)


def _whole(phase: Phase, operand: str) -> Span:
    return _span(phase, operand, 0, phase.buffers[operand].values)


def _piece(phase: Phase, operand: str, unit: int, values: int) -> Span:
    """The values of a unit of `values` values; the last unit's may be fewer."""
    return _span(phase, operand, unit * values, min(phase.buffers[operand].values, (unit + 1) * values))


def _outputs(phase: Phase, unit: int, values: int) -> Spans:
    operands = [operand for operand in ("output", "residual_out") if operand in phase.buffers]
    return tuple(_piece(phase, operand, unit, values) for operand in operands)


def _nothing(phase: Phase, config: object, unit: int) -> Spans:
    return ()


def _embed_writes(phase: Phase, config: EmbedConfig, unit: int) -> Spans:
    return _outputs(phase, unit, UNIT_ROWS)


def _matvec_reads(phase: Phase, config: MatvecConfig, unit: int) -> Spans:
    return _vectors_of_matvec(phase, config, unit) + ((_whole(phase, "lse"),) if "lse" in phase.buffers else ())


def _vectors_of_matvec(phase: Phase, config: MatvecConfig, unit: int) -> Spans:
    if config.post is not None:
        return _whole(phase, "input"), _whole(phase, "residual_in")
    if config.epilogue is Epilogue.RESIDUAL:
        return _whole(phase, "input"), _piece(phase, "residual_in", unit, UNIT_ROWS)
    return (_whole(phase, "input"),)


def _matvec_writes(phase: Phase, config: MatvecConfig, unit: int) -> Spans:
    rows = UNIT_ROWS // 2 if config.epilogue is Epilogue.GATED else UNIT_ROWS
    if not config.post_sum:
        return _outputs(phase, unit, rows)
    output, part = _piece(phase, "output", unit, rows), _piece(phase, "residual_out", unit, config.sum_values)
    return (output, part) if part.begin < part.end else (output,)


def _attention_reads(phase: Phase, config: AttentionConfig, unit: int) -> Spans:
    group, split = divmod(unit, phase.splits)
    heads, kv_head, d = config.group_heads(group), config.group_kv_head(group), config.head_dim
    spans = [_span(phase, "input", heads.start * d, heads.stop * d)]
    if split == phase.splits - 1:  # the last split also holds the new token
        spans += [*_key_value(phase, config, kv_head)]
        if not config.append:
            spans.append(_span(phase, "appended", kv_head, kv_head + 1))
    return tuple(spans)


def _key_value(phase: Phase, config: AttentionConfig | KvAppendConfig, kv_head: int) -> Spans:
    d = config.head_dim
    key = (config.heads + kv_head) * d
    value = key + config.kv_heads * d
    return _span(phase, "input", key, key + d), _span(phase, "value_input", value, value + d)


def _attention_writes(phase: Phase, config: AttentionConfig, unit: int) -> Spans:
    group, split = divmod(unit, phase.splits)
    heads = config.group_heads(group)
    begin, end = split * config.heads + heads.start, split * config.heads + heads.stop
    output = _span(phase, "output", begin * config.head_dim, end * config.head_dim)
    return (output,) if phase.splits == 1 else (output, _span(phase, "lse_out", begin * LSE_WORDS, end * LSE_WORDS))


def _reduce_reads(phase: Phase, config: AttentionReduceConfig, unit: int) -> Spans:
    d, rows = config.head_dim, [split * config.heads + unit for split in range(phase.splits)]
    return (
        *(_span(phase, "input", row * d, (row + 1) * d) for row in rows),
        *(_span(phase, "lse", row * LSE_WORDS, row * LSE_WORDS + 1) for row in rows),
    )


def _head(operand: str) -> Callable[[Phase, Any, int], Spans]:
    def spans(phase: Phase, config: AttentionReduceConfig | RopeConfig, unit: int) -> Spans:
        return (_span(phase, operand, unit * config.head_dim, (unit + 1) * config.head_dim),)

    return spans


def _sample_reads(phase: Phase, config: SampleConfig, unit: int) -> Spans:
    return (_whole(phase, "input"),)


def _group(operand: str) -> Callable[[Phase, Any, int], Spans]:
    def spans(phase: Phase, config: NormConfig, unit: int) -> Spans:
        begin = phase.numbers["first"] + unit * config.group
        return (_span(phase, operand, begin, begin + config.group),)

    return spans


def _norm_add_reads(phase: Phase, config: ResidualNormAddConfig, unit: int) -> Spans:
    return _whole(phase, "input"), _piece(phase, "residual_in", unit, ELEMENTWISE_VALUES)


def _append_reads(phase: Phase, config: KvAppendConfig, unit: int) -> Spans:
    return _key_value(phase, config, unit)


def _one_word(phase: Phase, config: KvAppendConfig | BarrierConfig, unit: int) -> Spans:
    return (_span(phase, "output", unit, unit + 1),)


def _pieces(*operands: str, factor: int = 1) -> Callable[[Phase, Any, int], Spans]:
    def spans(phase: Phase, config: object, unit: int) -> Spans:
        return tuple(_piece(phase, operand, unit, factor * ELEMENTWISE_VALUES) for operand in operands)

    return spans


def _elementwise_writes(phase: Phase, config: object, unit: int) -> Spans:
    return _outputs(phase, unit, ELEMENTWISE_VALUES)


def _copied(operand: str) -> Callable[[Phase, Any, int], Spans]:
    def spans(phase: Phase, config: CopyConfig, unit: int) -> Spans:
        first, begin = phase.numbers["first"], unit * ELEMENTWISE_VALUES
        end = min(config.values, begin + ELEMENTWISE_VALUES)
        return (_span(phase, operand, first + begin, first + end),)

    return spans


_Access = Callable[["Phase", Any, int], Spans]

_ACCESS: dict[type, tuple[_Access, _Access]] = {
    EmbedConfig: (_nothing, _embed_writes),
    MatvecConfig: (_matvec_reads, _matvec_writes),
    AttentionConfig: (_attention_reads, _attention_writes),
    AttentionReduceConfig: (_reduce_reads, _head("output")),
    SampleConfig: (_sample_reads, _nothing),
    NormConfig: (_group("input"), _group("output")),
    ResidualNormAddConfig: (_norm_add_reads, _elementwise_writes),
    ResidualAddConfig: (_pieces("input", "residual_in"), _elementwise_writes),
    RopeConfig: (_head("input"), _head("output")),
    KvAppendConfig: (_append_reads, _one_word),
    ActivateConfig: (_pieces("input"), _elementwise_writes),
    GatedActivateConfig: (_pieces("input", factor=2), _elementwise_writes),
    AddConfig: (_pieces("input", "other"), _elementwise_writes),
    CopyConfig: (_copied("input"), _copied("output")),
    ZeroConfig: (_nothing, _elementwise_writes),
    # What a barrier reads is its own phase's: that is `arrivals`, and no dependency between phases.
    BarrierConfig: (_nothing, _one_word),
    NoOpConfig: (_nothing, _nothing),
}
