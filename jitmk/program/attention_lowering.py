"""Lowering of what lies between the qkv projection and the attention output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jitmk.model.spec import ModelSpec, QkNorm, QkNormScope
from jitmk.program.builder import ProgramBuilder
from jitmk.program.configs import (
    ELEMENTWISE_VALUES,
    MAX_GROUP,
    AttentionConfig,
    AttentionReduceConfig,
    CopyConfig,
    KvAppendConfig,
    NormConfig,
    RopeConfig,
)
from jitmk.program.fusion import Fusion
from jitmk.program.isa import NO_OPERAND, Opcode
from jitmk.program.packing import ceil_div
from jitmk.program.program import Buffer
from jitmk.program.rope_layout import rope_offset, rope_stride


@dataclass(frozen=True)
class ProjectionInput:
    """What the last projection of a block reads.

    Attributes:
        values: a vector; or attention's results of some splits, which the projection is to merge.
        lse: the logarithms of the splits' normalisers then, else None.
    """

    values: Buffer
    lse: Buffer | None = None

    @property
    def buffers(self) -> dict[str, Buffer]:
        """The operands of the projection."""
        return {"input": self.values} | ({} if self.lse is None else {"lse": self.lse})


def lower_attention(
    b: ProgramBuilder, spec: ModelSpec, fusion: Fusion, layer: int, splits: int, qkv: Buffer, copies: int
) -> ProjectionInput:
    """Norms, rotation, append and attention of a layer: each its own phase or a part of attention.

    Args:
        splits: parts of the context.
        qkv: what the projection wrote.
        copies: of what comes out.
    """
    buffers = {"input": qkv, "value_input": qkv}
    if spec.qk_norm is not None and not fusion.qk_norm:
        buffers["input"] = _norm_heads(b, spec, spec.qk_norm, layer, qkv)
    if not fusion.rope:
        buffers |= _rotate(b, spec, layer, buffers["input"], qkv)
        buffers["appended"] = _append(b, spec, layer, buffers)
    return _attend(b, spec, fusion, layer, splits, buffers, copies)


def _norm_heads(b: ProgramBuilder, spec: ModelSpec, norm: QkNorm, layer: int, qkv: Buffer) -> Buffer:
    """Queries and keys, normed, in a buffer that begins as qkv does."""
    prefix, d = f"layers.{layer}.", spec.head_dim
    output = b.bf16(prefix + "qk_norm.output", (spec.num_heads + spec.num_kv_heads) * d)
    buffers = {"input": qkv, "output": output}
    for name, first, heads in (("q_norm", 0, spec.num_heads), ("k_norm", spec.num_heads, spec.num_kv_heads)):
        groups, group = (1, heads * d) if norm.scope is QkNormScope.PROJECTION else (heads, d)
        shared = norm.scope is QkNormScope.HEAD
        config = NormConfig(norm.kind, groups, group, norm.eps, False, shared, output.copies)
        vectors, numbers = {"norm": prefix + name}, {"first": first * d}
        b.phase(
            prefix + name, name, Opcode.NORM, config, groups, buffers, layer=layer, vectors=vectors, numbers=numbers
        )
    return output


def _rotate(b: ProgramBuilder, spec: ModelSpec, layer: int, qk: Buffer, qkv: Buffer) -> dict[str, Buffer]:
    """Rotated queries and keys with the values beside them, in a buffer like qkv; what there is, without rotation."""
    rope = spec.layers[layer].rope
    if rope is None or spec.ropes[rope].rotary_dim == 0:
        return {"input": qk, "value_input": qkv}
    prefix = f"layers.{layer}."
    heads, kv_heads, d = spec.num_heads, spec.num_kv_heads, spec.head_dim
    output = b.bf16(prefix + "rope.output", spec.qkv_rows)
    config = RopeConfig(heads, kv_heads, d, spec.ropes[rope].rotary_dim, rope_stride(spec))
    numbers = {"rope": rope_offset(spec, rope)}
    buffers = {"input": qk, "output": output}
    b.phase(prefix + "rope", "rope", Opcode.ROPE, config, heads + kv_heads, buffers, layer=layer, numbers=numbers)

    values = CopyConfig(kv_heads * d, output.copies)
    units, buffers = ceil_div(values.values, ELEMENTWISE_VALUES), {"input": qkv, "output": output}
    numbers = {"first": (heads + kv_heads) * d}
    b.phase(prefix + "value_copy", "copy", Opcode.COPY, values, units, buffers, layer=layer, numbers=numbers)
    return {"input": output, "value_input": output}


def _append(b: ProgramBuilder, spec: ModelSpec, layer: int, inputs: Mapping[str, Buffer]) -> Buffer:
    name = f"layers.{layer}.kv_append"
    output = b.fp32(name + ".output", spec.num_kv_heads)
    config = KvAppendConfig(spec.num_heads, spec.num_kv_heads, spec.head_dim)
    buffers = {**inputs, "output": output}
    b.phase(name, "kv_append", Opcode.KV_APPEND, config, spec.num_kv_heads, buffers, layer=layer)
    return output


def _attend(
    b: ProgramBuilder,
    spec: ModelSpec,
    fusion: Fusion,
    layer: int,
    splits: int,
    inputs: Mapping[str, Buffer],
    copies: int,
) -> ProjectionInput:
    prefix = f"layers.{layer}."
    config = _attention_config(spec, fusion, layer, copies)
    norms = {} if config.qk_norm is None else {"q_norm": prefix + "q_norm", "k_norm": prefix + "k_norm"}
    merged = splits <= fusion.merged_splits  # one has nothing to merge
    if splits == 1:
        attended = ProjectionInput(b.heads(prefix + "attention.output", spec.attention_size, copies))
    else:
        of_splits = copies if merged else 1
        attended = ProjectionInput(
            b.heads(prefix + "attention.partial", splits * spec.attention_size, of_splits),
            b.logarithms(prefix + "attention.lse", splits * spec.num_heads, of_splits),
        )
    written = {"output": attended.values} | ({} if attended.lse is None else {"lse_out": attended.lse})
    b.phase(
        prefix + "attention",
        "attention",
        Opcode.ATTENTION,
        config,
        config.groups * splits,
        {**inputs, **written},
        layer=layer,
        vectors=norms,
        numbers=_attention_numbers(spec, layer, config),
        splits=splits,
    )
    if merged:
        return attended
    output = b.heads(prefix + "attention.output", spec.attention_size, copies)
    name, opcode = prefix + "attention_reduce", Opcode.ATTENTION_REDUCE
    reduce = AttentionReduceConfig(spec.num_heads, spec.head_dim, copies)
    buffers = {**attended.buffers, "output": output}
    b.phase(name, opcode.value, opcode, reduce, spec.num_heads, buffers, layer=layer, splits=splits)
    return ProjectionInput(output)


def _attention_config(spec: ModelSpec, fusion: Fusion, layer: int, copies: int) -> AttentionConfig:
    """What layers share is the same for all of them, so that they share code; what they do not is an operand."""
    ratio, norm = spec.query_group, spec.qk_norm if fusion.qk_norm else None
    rope = spec.layers[layer].rope
    widths = spec.rotary_dim if rope is None else spec.ropes[rope].rotary_dim
    rotary_dim = widths if fusion.rope else 0
    return AttentionConfig(
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        ceil_div(ratio, ceil_div(ratio, MAX_GROUP)),
        spec.attention_scale,
        copies,
        rotary_dim,
        rope_stride(spec) if rotary_dim else 0,
        any(of_layer.window is not None for of_layer in spec.layers),
        spec.attention_soft_cap,
        None if norm is None else norm.kind,
        0.0 if norm is None else norm.eps,
        fusion.rope,
        fusion.merge,
        fusion.early_tiles(spec),
    )


def _attention_numbers(spec: ModelSpec, layer: int, config: AttentionConfig) -> dict[str, int]:
    of_layer = spec.layers[layer]
    rotates = config.rotary_dim > 0 and of_layer.rope is not None
    return {
        "window": of_layer.window or 0,
        "rope": rope_offset(spec, of_layer.rope) if rotates and of_layer.rope is not None else NO_OPERAND,
    }
