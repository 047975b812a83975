"""Lowering: a ModelSpec becomes the phases of one decode step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jitmk.errors import ConfigError
from jitmk.model.spec import ModelSpec
from jitmk.program.isa import Opcode
from jitmk.program.packing import UNIT_ROWS, ceil_div
from jitmk.program.program import (
    MAX_GROUP,
    PARTIAL_EXTRA,
    AttentionConfig,
    AttentionReduceConfig,
    Buffer,
    BufferKind,
    Config,
    EmbedConfig,
    Epilogue,
    MatvecConfig,
    Phase,
    Program,
    SampleConfig,
    Variant,
)

POLLED_COPIES = 2
"""Copies of a vector that every SM polls (measured: one copy costs 3 percent of a step, four gain nothing)."""


def lower(spec: ModelSpec, splits: int = 1, tokens: int = 1) -> Program:
    """The program of one decode step.

    Args:
        spec: the model.
        splits: parts into which attention splits the context; with more than one, a reduce phase merges them.
        tokens: sequences in the batch; 1 is what the device code runs today.

    Raises:
        ConfigError: splits or tokens out of range.
    """
    if tokens != 1:
        raise ConfigError(f"a batch of {tokens} sequences is not supported; the batch is 1")
    if splits < 1:
        raise ConfigError(f"splits = {splits}; attention needs at least one")
    builder = _Builder(tokens)
    residual = _embed(builder, spec)
    for layer in range(spec.num_layers):
        residual = _attention_block(builder, spec, layer, splits, residual)
        residual = _mlp_block(builder, spec, layer, residual)
    _head(builder, spec, residual)
    return builder.finish(splits)


@dataclass(frozen=True)
class _Residual:
    """The residual stream between two blocks: the fp32 sum, and the bf16 that the next norm reads."""

    sum: Buffer
    input: Buffer


@dataclass
class _Builder:
    tokens: int
    phases: list[Phase] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    words: int = 0

    def buffer(self, name: str, kind: BufferKind, values: int, copies: int = 1) -> Buffer:
        buffer = Buffer(name, kind, values, self.tokens, copies, self.words)
        self.words += buffer.total_words
        self.buffers.append(buffer)
        return buffer

    def variant(self, name: str, opcode: Opcode, config: Config) -> Variant:
        variant = Variant(name, opcode, config)
        if variant not in self.variants:
            self.variants.append(variant)
        return variant

    def phase(self, phase: Phase) -> None:
        self.phases.append(replace(phase, index=len(self.phases)))

    def finish(self, splits: int) -> Program:
        return Program(tuple(self.phases), tuple(self.buffers), tuple(self.variants), self.tokens, splits, self.words)


def _embed(b: _Builder, spec: ModelSpec) -> _Residual:
    config = EmbedConfig(spec.vocab_size, spec.hidden_size, spec.tied_embeddings, POLLED_COPIES)
    residual = _residual(b, spec, "embed")
    b.phase(
        Phase(
            0,
            "embed",
            b.variant("embed", Opcode.EMBED, config),
            ceil_div(spec.hidden_size, UNIT_ROWS),
            buffers={"output": residual.input, "residual_out": residual.sum},
            weights="lm_head" if spec.tied_embeddings else "embedding",
        )
    )
    return residual


def _residual(b: _Builder, spec: ModelSpec, writer: str) -> _Residual:
    return _Residual(
        b.buffer(f"{writer}.residual", BufferKind.FP32, spec.hidden_size),
        b.buffer(f"{writer}.output", BufferKind.BF16, spec.hidden_size, POLLED_COPIES),
    )


def _matvec(
    b: _Builder,
    spec: ModelSpec,
    name: str,
    config: MatvecConfig,
    buffers: dict[str, Buffer],
    layer: int | None = None,
    norm: str | None = None,
) -> None:
    prefix = "" if layer is None else f"layers.{layer}."
    b.phase(
        Phase(
            0,
            prefix + name,
            b.variant(name, Opcode.MATVEC, config),
            config.layout.units,
            layer,
            buffers,
            weights=prefix + name,
            norm=norm,
            bias=f"{prefix}{name}_bias" if config.bias else None,
        )
    )


def _config(spec: ModelSpec, rows: int, columns: int, epilogue: Epilogue, *, norm: bool, bias: bool) -> MatvecConfig:
    return MatvecConfig(
        rows,
        columns,
        epilogue,
        norm,
        spec.norm_eps if norm else 0.0,
        bias,
        spec.activation if epilogue is Epilogue.GATED else None,
        input_copies=POLLED_COPIES,
        # A head's q, k and v are polled by the few SMs that attend with it.
        output_copies=1 if epilogue in (Epilogue.STORE, Epilogue.LOGITS) else POLLED_COPIES,
    )


def _attention_block(b: _Builder, spec: ModelSpec, layer: int, splits: int, residual: _Residual) -> _Residual:
    prefix = f"layers.{layer}."
    qkv = b.buffer(prefix + "qkv.output", BufferKind.BF16, spec.qkv_rows)
    config = _config(spec, spec.qkv_rows, spec.hidden_size, Epilogue.STORE, norm=True, bias=spec.qkv_bias)
    buffers = {"input": residual.input, "output": qkv}
    _matvec(b, spec, "qkv", config, buffers, layer, norm=prefix + "attention_norm")

    attention = b.buffer(prefix + "attention.output", BufferKind.BF16, spec.attention_size, POLLED_COPIES)
    _attend(b, spec, layer, splits, qkv, attention)

    after = _residual(b, spec, prefix + "o_proj")
    config = _config(spec, spec.hidden_size, spec.attention_size, Epilogue.RESIDUAL, norm=False, bias=spec.o_bias)
    buffers = {
        "input": attention,
        "output": after.input,
        "residual_in": residual.sum,
        "residual_out": after.sum,
    }
    _matvec(b, spec, "o_proj", config, buffers, layer)
    return after


def _attend(b: _Builder, spec: ModelSpec, layer: int, splits: int, qkv: Buffer, output: Buffer) -> None:
    prefix = f"layers.{layer}."
    partial = splits > 1
    ratio = spec.query_group
    config = AttentionConfig(
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.rope.rotary_dim,
        ceil_div(ratio, ceil_div(ratio, MAX_GROUP)),
        spec.attention_scale,
        partial,
        1 if partial else POLLED_COPIES,
    )
    target = output
    if partial:
        values = splits * spec.num_heads * (spec.head_dim + PARTIAL_EXTRA)
        target = b.buffer(prefix + "attention.partial", BufferKind.FP32, values)
    variant = b.variant("attention_partial" if partial else "attention", Opcode.ATTENTION, config)
    buffers = {"input": qkv, "output": target}
    b.phase(Phase(0, prefix + "attention", variant, config.groups * splits, layer, buffers, splits=splits))
    if partial:
        reduce_config = AttentionReduceConfig(spec.num_heads, spec.head_dim, POLLED_COPIES)
        variant = b.variant("attention_reduce", Opcode.ATTENTION_REDUCE, reduce_config)
        buffers = {"input": target, "output": output}
        b.phase(Phase(0, prefix + "attention_reduce", variant, spec.num_heads, layer, buffers, splits=splits))


def _mlp_block(b: _Builder, spec: ModelSpec, layer: int, residual: _Residual) -> _Residual:
    prefix = f"layers.{layer}."
    hidden = b.buffer(prefix + "gate_up.output", BufferKind.BF16, spec.intermediate_size, POLLED_COPIES)
    config = _config(spec, 2 * spec.intermediate_size, spec.hidden_size, Epilogue.GATED, norm=True, bias=spec.mlp_bias)
    buffers = {"input": residual.input, "output": hidden}
    _matvec(b, spec, "gate_up", config, buffers, layer, norm=prefix + "mlp_norm")

    after = _residual(b, spec, prefix + "down")
    config = _config(spec, spec.hidden_size, spec.intermediate_size, Epilogue.RESIDUAL, norm=False, bias=spec.mlp_bias)
    buffers = {"input": hidden, "output": after.input, "residual_in": residual.sum, "residual_out": after.sum}
    _matvec(b, spec, "down", config, buffers, layer)
    return after


def _head(b: _Builder, spec: ModelSpec, residual: _Residual) -> None:
    candidates = b.buffer("lm_head.output", BufferKind.CANDIDATE, spec.vocab_size)
    config = _config(spec, spec.vocab_size, spec.hidden_size, Epilogue.LOGITS, norm=True, bias=False)
    _matvec(b, spec, "lm_head", config, {"input": residual.input, "output": candidates}, norm="final_norm")
    variant = b.variant("sample", Opcode.SAMPLE, SampleConfig(spec.vocab_size))
    b.phase(Phase(0, "sample", variant, 1, buffers={"input": candidates}))
