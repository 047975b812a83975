"""The kernels of prefill: what lies between its matrix products, specialised to a model."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

from jitmk.codegen.abi import Field
from jitmk.codegen.render import environment, inline_headers
from jitmk.errors import CodegenError
from jitmk.model.spec import ModelSpec, NormKind, QkNormScope
from jitmk.program import packing
from jitmk.resources import headers_dir

THREADS = 256
"""Of a CTA of the kernels that give work to warps."""

_ROW_VALUES = 16
"""Values of a token's residual that a thread holds, where a CTA has room for as many threads."""

_POINTER = ctypes.c_uint64
_PACKED = (
    Field("blocks", ctypes.c_int32, "int", "of a warp's slice of a row, as in MatrixLayout"),
    Field("chunks", ctypes.c_int32, "int", "of a unit, as in MatrixLayout"),
)


@dataclass(frozen=True)
class PrefillKernel:
    """One kernel: its entry point, its parameter, and how many threads a CTA has."""

    name: str
    params: str
    fields: tuple[Field, ...]
    per_row: bool = False

    def threads(self, spec: ModelSpec) -> int:
        """Threads of a CTA, of which any number makes a grid."""
        return row_threads(spec) if self.per_row else THREADS

    def structure(self) -> ctypes.Structure:
        """A new parameter, all zero; fields as in `fields`."""
        names = [(field.name, field.host) for field in self.fields]
        kind: type[ctypes.Structure] = type(self.params, (ctypes.Structure,), {"_fields_": names})
        return kind()


_KERNELS = (
    PrefillKernel(
        "jitmk_unpack",
        "UnpackParams",
        (
            Field("packed", _POINTER, "const uint4*", "whole units of a packed matrix"),
            Field("to", _POINTER, "uint4*", "bf16 [rows][columns]"),
            Field("rows", ctypes.c_int32, "int", "that are written"),
            Field("columns", ctypes.c_int32, "int", "a multiple of 8"),
            *_PACKED,
        ),
    ),
    PrefillKernel(
        "jitmk_embed",
        "EmbedParams",
        (
            Field("ids", _POINTER, "const i64*", "[rows] token ids"),
            Field("table", _POINTER, "const uint4*", "bf16 [vocabulary][hidden], packed or row-major"),
            Field("positions", _POINTER, "const u16*", "bf16 [positions][hidden] row-major, or null"),
            Field("residual", _POINTER, "float*", "[rows][hidden]"),
            Field("rows", ctypes.c_int32, "int", "tokens"),
            Field("start", ctypes.c_int32, "int", "position of the first"),
            Field("vocabulary", ctypes.c_int32, "int", "rows of the table"),
            Field("scale", ctypes.c_float, "float", "of the table's rows"),
            _PACKED[0],
            Field("chunks", ctypes.c_int32, "int", "as in MatrixLayout; 0 where the table is row-major"),
        ),
        per_row=True,
    ),
    PrefillKernel(
        "jitmk_add_norm",
        "AddNormParams",
        (
            Field("residual", _POINTER, "float*", "[rows][hidden], changed in place"),
            Field("block", _POINTER, "const u16*", "bf16 [rows][hidden], what a block adds, or null"),
            Field("post_weight", _POINTER, "const float*", "[hidden] of the block's own norm, or null"),
            Field("post_bias", _POINTER, "const float*", "[hidden], or null"),
            Field("weight", _POINTER, "const float*", "[hidden] of the norm behind, or null"),
            Field("bias", _POINTER, "const float*", "[hidden], or null"),
            Field("output", _POINTER, "u16*", "bf16 [rows][hidden], or null"),
            Field("rows", ctypes.c_int32, "int", "tokens"),
            Field("scale", ctypes.c_float, "float", "of what the block adds"),
            Field("eps", ctypes.c_float, "float", "of both norms"),
        ),
        per_row=True,
    ),
    PrefillKernel(
        "jitmk_heads",
        "HeadsParams",
        (
            Field("qkv", _POINTER, "u16*", "bf16 [rows][query heads, key heads, value heads][head_dim], in place"),
            Field("cos", _POINTER, "const float*", "[rows][half]"),
            Field("sin", _POINTER, "const float*", "[rows][half]"),
            Field("q_norm", _POINTER, "const float*", "[head_dim] or [heads][head_dim], where there is such a norm"),
            Field("k_norm", _POINTER, "const float*", ""),
            Field("cache", _POINTER, "u16*", "the layer's tiles of the first head"),
            Field("head_stride", ctypes.c_int64, "i64", "elements from one head's tiles to the next's"),
            Field("rows", ctypes.c_int32, "int", "tokens"),
            Field("start", ctypes.c_int32, "int", "position of the first"),
            Field("half", ctypes.c_int32, "int", "pairs of dims that turn, an even number; 0 for none"),
            Field("eps", ctypes.c_float, "float", "of the norms"),
        ),
    ),
    PrefillKernel(
        "jitmk_activate",
        "ActivateParams",
        (
            Field("input", _POINTER, "const u16*", "bf16 gate, up, gate, up, ...; or what is activated"),
            Field("output", _POINTER, "u16*", "bf16"),
            Field("pieces", ctypes.c_int64, "i64", "of 8 values of the output"),
        ),
    ),
    PrefillKernel(
        "jitmk_logits",
        "LogitsParams",
        (
            Field("head", _POINTER, "const uint4*", "the packed LM head"),
            Field("input", _POINTER, "const float*", "[columns]"),
            Field("logits", _POINTER, "float*", "[vocabulary]"),
            Field("vocabulary", ctypes.c_int32, "int", "rows of the head"),
            Field("columns", ctypes.c_int32, "int", "a multiple of 8"),
            *_PACKED,
        ),
    ),
)

PREFILL_KERNELS: Mapping[str, PrefillKernel] = {kernel.name: kernel for kernel in _KERNELS}
"""All kernels of the rendered source, by their entry points."""


def row_threads(spec: ModelSpec) -> int:
    """Threads of a CTA that has a token's residual in registers: whole warps, at most 1024 threads."""
    warps = packing.ceil_div(spec.hidden_size, 32 * _ROW_VALUES)
    return 32 * min(warps, 32)


def render_prefill(spec: ModelSpec) -> str:
    """The CUDA source of a model's prefill kernels, the same for every GPU.

    Raises:
        CodegenError: the kernels cannot take the model's shapes.
    """
    if spec.hidden_size % 8 or spec.intermediate_size % 8 or spec.head_dim % 16:
        raise CodegenError(
            f"prefill reads 16 bytes at a time, but hidden_size {spec.hidden_size} and intermediate_size "
            f"{spec.intermediate_size} must be multiples of 8, and head_dim {spec.head_dim} one of 16"
        )
    per_head = spec.qk_norm if spec.qk_norm and spec.qk_norm.scope is not QkNormScope.PROJECTION else None
    rendered = (
        environment()
        .get_template("prefill.cu.j2")
        .render(
            spec=spec,
            kernels=PREFILL_KERNELS.values(),
            packing=packing,
            threads=THREADS,
            row_threads=row_threads(spec),
            rms=spec.norm.kind is NormKind.RMS,
            head_norm=per_head.kind.name if per_head else "NONE",
            head_weights=per_head is not None and per_head.scope is QkNormScope.HEAD_WEIGHTS,
        )
    )
    return inline_headers(rendered, headers_dir(), "templates/prefill.cu.j2")
