"""The kernels in which opcodes are run on their own: few kernels, each with many variants. Needs no GPU to look at."""

from __future__ import annotations

from dataclasses import dataclass

from jitmk.model.spec import ModelSpec
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.program.program import Epilogue, Variant
from tests.support.phases import NORM_EPS, matvec_variant
from tests.support.shapes import llama
from tests.support.tiny import tiny_spec

_ROWS = {Epilogue.STORE: 80, Epilogue.RESIDUAL: 80, Epilogue.GATED: 96, Epilogue.LOGITS: 101}

# Every prologue and epilogue, with a slice that ends in the middle and warps that have nothing.
MATVEC_KINDS = tuple(
    matvec_variant(rows, 336, epilogue, norm=norm, bias=bias)
    for epilogue, rows in _ROWS.items()
    for norm in (False, True)
    for bias in (False, True)
)

# Odd shapes: fewer columns than a block, many chunks, vocabularies that end within a unit, more units than an SM has
# slots for partial sums.
MATVEC_SHAPES = (
    matvec_variant(16, 16, Epilogue.STORE, norm=True),
    matvec_variant(1, 16, Epilogue.LOGITS, norm=True),
    matvec_variant(7, 64, Epilogue.LOGITS),
    matvec_variant(9, 272, Epilogue.LOGITS, norm=True),
    matvec_variant(16, 48, Epilogue.RESIDUAL),
    matvec_variant(32, 256, Epilogue.GATED, norm=True),
    matvec_variant(2064, 2048, Epilogue.STORE, norm=True),
    matvec_variant(2048, 2304, Epilogue.RESIDUAL, bias=True),
    matvec_variant(4096, 4112, Epilogue.GATED, norm=True),
    matvec_variant(1024, 8192, Epilogue.RESIDUAL),
    matvec_variant(512, 14336, Epilogue.RESIDUAL),
    matvec_variant(20011, 2048, Epilogue.LOGITS, norm=True),
)

EMBED_SPECS = tuple(
    tiny_spec(hidden_size=hidden, vocab_size=101, tied_embeddings=tied)
    for hidden in (16, 64, 2048, 4112)
    for tied in (False, True)
)

# The second has several units an SM, of which the last one ends within the unit.
SAMPLE_SPEC = tiny_spec(vocab_size=1003, num_layers=1)
LARGE_SAMPLE_SPEC = tiny_spec(vocab_size=20011, num_layers=1)


@dataclass(frozen=True)
class OpKernel:
    """A kernel by name: its variants, and the model whose head_dim, epsilon and scale it is built for."""

    name: str
    spec: ModelSpec
    variants: tuple[Variant, ...]


def _variants(specs: tuple[ModelSpec, ...], *opcodes: Opcode) -> tuple[Variant, ...]:
    """The variants of these opcodes that the programs of these models hold, one split and several."""
    found = [v for spec in specs for splits in (1, 2) for v in lower(spec, splits).variants if v.opcode in opcodes]
    return tuple(dict.fromkeys(found))


def _attention_spec(head_dim: int, heads: int, kv_heads: int) -> ModelSpec:
    return llama(64, 32, 2, heads, kv_heads, head_dim, vocab_size=16, max_positions=4224)


HEAD_DIMS = (64, 80, 96, 128, 256)

# (heads, key/value heads): no sharing, ratios that fill a fragment partly and wholly, two groups of the same size, and
# two of different sizes.
RATIOS = {64: ((4, 4), (6, 2), (8, 1), (16, 1), (9, 1))}
FEWER_RATIOS = ((8, 2), (9, 1))

ATTENTION_SPECS = tuple(
    _attention_spec(head_dim, *ratio) for head_dim in HEAD_DIMS for ratio in RATIOS.get(head_dim, FEWER_RATIOS)
)


def _attention_kernel(head_dim: int) -> OpKernel:
    specs = tuple(spec for spec in ATTENTION_SPECS if spec.head_dim == head_dim)
    return OpKernel(f"attention-{head_dim}", specs[0], _variants(specs, Opcode.ATTENTION, Opcode.ATTENTION_REDUCE))


_SMALL = tiny_spec(norm_eps=NORM_EPS)

KERNELS = {
    kernel.name: kernel
    for kernel in (
        OpKernel("matvec-kinds", _SMALL, MATVEC_KINDS),
        OpKernel("matvec-shapes", _SMALL, MATVEC_SHAPES),
        OpKernel(
            "embed-sample",
            _SMALL,
            (
                *_variants(EMBED_SPECS, Opcode.EMBED),
                *(
                    variant
                    for spec in (SAMPLE_SPEC, LARGE_SAMPLE_SPEC)
                    for variant in lower(spec).variants
                    if variant.opcode is Opcode.SAMPLE or variant.name == "lm_head"
                ),
            ),
        ),
        *(_attention_kernel(head_dim) for head_dim in HEAD_DIMS),
    )
}
