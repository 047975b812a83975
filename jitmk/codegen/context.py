"""The render context: every number that the templates substitute, worked out once and frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jitmk.arch import GpuArch
from jitmk.errors import CodegenError
from jitmk.model.spec import Activation, ModelSpec
from jitmk.program.isa import Opcode
from jitmk.program.kv_layout import KvLayout
from jitmk.program.packing import CHUNK_BYTES, CONSUMER_WARPS, MatrixLayout, ceil_div
from jitmk.program.program import (
    MAX_GROUP,
    AttentionConfig,
    AttentionReduceConfig,
    EmbedConfig,
    MatvecConfig,
    SampleConfig,
    Variant,
)

FIXED_SHARED_BYTES = 10240
"""Shared memory that is neither ring nor slices, at most; the device code works out the exact size."""

MIN_RING_CHUNKS = 2

SLICE_ALIGNMENT = 128


@dataclass(frozen=True)
class OpContext:
    """One variant: its place in the kernel, its opcode's template and the template's arguments, in order."""

    index: int
    name: str
    opcode: Opcode
    shape: tuple[str, ...]

    @property
    def template(self) -> str:
        return f"ops/{self.opcode.value}.cuh.j2"

    @property
    def arguments(self) -> str:
        return ", ".join(self.shape)


@dataclass(frozen=True)
class BuildOptions:
    """Kernels for looking closely.

    Attributes:
        trace: the kernel notes when it passes the points of `abi.Mark`.
        race_check: every lane arrives at barriers for itself, so that compute-sanitizer's racecheck, which does not
            follow one lane speaking for its warp, can see the order.
    """

    trace: bool = False
    race_check: bool = False


PLAIN = BuildOptions()


@dataclass(frozen=True)
class RenderContext:
    """What is specific to one kernel."""

    arch: str
    shared_bytes: int
    slice_bytes: int
    chunk_bytes: int
    head_dim: int
    max_group: int
    norm_eps: str
    score_scale: str
    activation: Activation
    build: BuildOptions
    ops: tuple[OpContext, ...]


def render_context(
    variants: Sequence[Variant], spec: ModelSpec, arch: GpuArch, build: BuildOptions = PLAIN
) -> RenderContext:
    """The context of a kernel that holds these variants, in this order.

    Raises:
        CodegenError: the model does not fit the shared memory of the GPU.
    """
    slice_bytes = _widest_slice_bytes(variants)
    if ring_chunks(variants, arch) < MIN_RING_CHUNKS:
        raise CodegenError(
            f"the model needs {CONSUMER_WARPS * slice_bytes} bytes of shared memory for its widest vector "
            f"(hidden {spec.hidden_size}, intermediate {spec.intermediate_size}) and {MIN_RING_CHUNKS * CHUNK_BYTES} "
            f"for the weight ring, but a block of {arch.name} has {arch.shared_bytes_per_block}; "
            "use a GPU with more shared memory (sm_90a, sm_100a, sm_103a), or another backend"
        )
    if KvLayout(spec.head_dim).tile_bytes > CHUNK_BYTES:
        raise CodegenError(f"head_dim = {spec.head_dim} is too wide; 256 is the most")
    return RenderContext(
        arch.name,
        arch.shared_bytes_per_block,
        slice_bytes,
        CHUNK_BYTES,
        spec.head_dim,
        MAX_GROUP,
        _float(spec.norm_eps),
        _float(spec.attention_scale * math.log2(math.e)),
        spec.activation,
        build,
        tuple(OpContext(i, v.name, v.opcode, _shape(v)) for i, v in enumerate(variants)),
    )


def ring_chunks(variants: Sequence[Variant], arch: GpuArch) -> int:
    """Chunks that the ring of a kernel with these variants holds, at least. None is built below `MIN_RING_CHUNKS`."""
    slices = CONSUMER_WARPS * _widest_slice_bytes(variants)
    return max(0, arch.shared_bytes_per_block - slices - FIXED_SHARED_BYTES) // CHUNK_BYTES


def _widest_slice_bytes(variants: Sequence[Variant]) -> int:
    return ceil_div(max(map(_slice_bytes, variants)), SLICE_ALIGNMENT) * SLICE_ALIGNMENT


def _float(value: float) -> str:
    """A C++ float literal that keeps every bit."""
    return f"{value:.9e}f"


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _slice_bytes(variant: Variant) -> int:
    """Shared memory that the variant wants for one consumer warp."""
    config = variant.config
    if isinstance(config, MatvecConfig):
        return config.layout.slice_columns * 2
    if isinstance(config, AttentionConfig):
        # Of heads wider than 128 a warp keeps half the value dims (csrc_headers/jitmk/vm/attention.cuh).
        return config.group * (config.head_dim // 2 if config.head_dim > 128 else config.head_dim) * 4
    return 0


def _shape(variant: Variant) -> tuple[str, ...]:
    """The template arguments of the variant's shape, in the order of the struct in csrc_headers."""
    config = variant.config
    if isinstance(config, EmbedConfig):
        layout = MatrixLayout(config.vocab_size, config.hidden_size)
        blocks = (layout.blocks, layout.chunks) if config.tied else (0, 0)
        return str(config.hidden_size), _bool(config.tied), str(blocks[0]), str(blocks[1]), str(config.output_copies)
    if isinstance(config, MatvecConfig):
        return (
            str(config.rows),
            str(config.columns),
            str(config.layout.blocks),
            str(config.layout.chunks),
            f"vm::Epilogue::{config.epilogue.name}",
            _bool(config.norm),
            _bool(config.bias),
            str(config.input_copies),
            str(config.output_copies),
        )
    if isinstance(config, AttentionConfig):
        return (
            str(config.heads),
            str(config.kv_heads),
            str(config.head_dim),
            str(config.group),
            _bool(config.partial),
            str(config.output_copies),
        )
    if isinstance(config, AttentionReduceConfig):
        return str(config.heads), str(config.head_dim), str(config.output_copies)
    assert isinstance(config, SampleConfig)
    return ()
