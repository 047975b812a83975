"""The kernels in which opcodes are run on their own: few kernels, each with many variants. Needs no GPU to look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jitmk.engine.step_programs import kernel_variants
from jitmk.model.spec import Activation, LayerSpec, ModelSpec, NormKind, NormSpec, QkNorm, QkNormScope
from jitmk.program.configs import BarrierConfig, Epilogue, MatvecConfig, NoOpConfig, Prologue, ZeroConfig
from jitmk.program.fusion import FUSED
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.program.program import Phase, Program, Variant
from tests.support.features import FEATURES, feature_spec
from tests.support.phases import NORM_EPS, matvec_variant
from tests.support.shapes import llama
from tests.support.tiny import tiny_spec

RMS, LAYER = NormKind.RMS, NormKind.LAYER
STORE, RESIDUAL, ACTIVATED, GATED, LOGITS = Epilogue

_ROWS = {STORE: 80, RESIDUAL: 80, ACTIVATED: 80, GATED: 96, LOGITS: 101}

# Every epilogue with and without norm and bias, with a slice that ends in the middle and warps that have nothing.
MATVEC_KINDS = tuple(
    matvec_variant(rows, 336, epilogue, f"{prologue.value}{'-bias' if bias else ''}", prologue=prologue, bias=bias)
    for epilogue, rows in _ROWS.items()
    for prologue in (Prologue.NONE, Prologue.RMS)
    for bias in (False, True)
)

# Every function and factor of an epilogue, and every combination of norms in a prologue.
MATVEC_PARTS = (
    *(
        matvec_variant(rows, 64, epilogue, activation.value, activation=activation)
        for epilogue, rows in ((ACTIVATED, 24), (GATED, 48))
        for activation in Activation
    ),
    matvec_variant(24, 64, RESIDUAL, "scale", scale=0.25, bias=True, residual_copies=2),
    matvec_variant(24, 64, RESIDUAL, "no-output", output_copies=0),
    matvec_variant(27, 64, LOGITS, "scale-cap", scale=4.0, soft_cap=3.0),
    matvec_variant(27, 64, LOGITS, "cap", soft_cap=1.5),
    *(
        matvec_variant(40, 336, STORE, f"layer{'-bias' if bias else ''}", prologue=Prologue.LAYER, norm_bias=bias)
        for bias in (False, True)
    ),
    *(
        matvec_variant(
            40,
            336,
            STORE,
            f"{post.value}-then-{prologue.value}",
            post=post,
            post_bias=post is LAYER,
            post_scale=0.5,
            post_sum=prologue is not Prologue.RMS,
            prologue=prologue,
            norm_bias=prologue is Prologue.LAYER,
        )
        for post in NormKind
        for prologue in (Prologue.NONE, Prologue.RMS, Prologue.LAYER)
    ),
    # More units than columns, and as many columns as units.
    matvec_variant(256, 16, STORE, "many-units", post=RMS, post_sum=True, prologue=Prologue.RMS),
    matvec_variant(128, 16, STORE, "a-column-each", post=RMS, post_sum=True, prologue=Prologue.RMS),
)

# Odd shapes: fewer columns than a block, many chunks, vocabularies that end within a unit, more units than an SM has
# slots for partial sums.
MATVEC_SHAPES = (
    matvec_variant(16, 16, STORE, prologue=Prologue.RMS),
    matvec_variant(1, 16, LOGITS, prologue=Prologue.RMS),
    matvec_variant(7, 64, LOGITS),
    matvec_variant(9, 272, LOGITS, prologue=Prologue.RMS),
    matvec_variant(16, 48, RESIDUAL),
    matvec_variant(32, 256, GATED, prologue=Prologue.RMS),
    matvec_variant(2064, 2048, STORE, prologue=Prologue.RMS),
    matvec_variant(2048, 2304, RESIDUAL, bias=True),
    matvec_variant(4096, 4112, GATED, prologue=Prologue.RMS),
    matvec_variant(1024, 8192, RESIDUAL),
    matvec_variant(512, 14336, RESIDUAL),
    matvec_variant(20011, 2048, LOGITS, prologue=Prologue.RMS),
)

# Norms of wide vectors: constants that are fetched early and late, many chunks; a vocabulary of GPT-2's kind.
MATVEC_WIDE_NORMS = (
    matvec_variant(5003, 768, LOGITS, prologue=Prologue.LAYER, norm_bias=True),
    matvec_variant(64, 2304, GATED, post=RMS, post_sum=True, prologue=Prologue.RMS),
    matvec_variant(64, 6144, STORE, prologue=Prologue.LAYER, norm_bias=True),
    matvec_variant(64, 5376, GATED, post=RMS, prologue=Prologue.RMS),
    matvec_variant(64, 12288, STORE, post=LAYER, post_bias=True, prologue=Prologue.LAYER, norm_bias=True),
)

# Chunks of other sizes than 16 KB, whole and uneven, in slots of 20 KB.
MATVEC_CHUNKS = (
    matvec_variant(40, 2560, STORE, "chunks-of-5", chunk_limit=5, prologue=Prologue.RMS),
    matvec_variant(40, 2816, RESIDUAL, "chunks-of-4-and-3", chunk_limit=5),
    matvec_variant(40, 4112, GATED, "chunks-of-3-and-2", chunk_limit=3),
    matvec_variant(1536, 8960, RESIDUAL, "chunks-of-3", chunk_limit=3),
)


def _with_own_units(*variants: Variant) -> tuple[Variant, ...]:
    """Those of these matvecs of which consumer warps can have units of their own, as such."""
    configs = {v: v.config for v in variants if isinstance(v.config, MatvecConfig) and v.config.can_own_units}
    return tuple(replace(v, name=f"own-{v.name}", config=replace(c, own_units=True)) for v, c in configs.items())


# The same where each warp has units of its own: in one round and in many, whole warps and single rows without any.
MATVEC_OWN_KINDS = _with_own_units(*MATVEC_KINDS, *MATVEC_SHAPES[:6])
MATVEC_OWN_PARTS = _with_own_units(
    *MATVEC_PARTS,
    matvec_variant(18, 960, STORE, prologue=Prologue.RMS),
    matvec_variant(204, 576, RESIDUAL, bias=True),
    matvec_variant(2064, 1024, GATED, prologue=Prologue.RMS),
    matvec_variant(1152, 768, STORE, prologue=Prologue.LAYER, norm_bias=True, bias=True),
)

EMBED_SPECS = tuple(
    tiny_spec(hidden_size=hidden, vocab_size=101, tied_embeddings=tied)
    for hidden in (16, 64, 2048, 4112)
    for tied in (False, True)
)

EMBED_SCALED = tuple(
    tiny_spec(tied_embeddings=tied, embedding_scale=8.0, learned_positions=positions)
    for tied in (False, True)
    for positions in (False, True)
)

# The second has several units an SM, of which the last one ends within the unit.
SAMPLE_SPEC = tiny_spec(vocab_size=1003, num_layers=1)
LARGE_SAMPLE_SPEC = tiny_spec(vocab_size=20011, num_layers=1)

# No model lowers to it. Three units, the last of them not whole.
ZERO = Variant("zero", Opcode.ZERO, ZeroConfig(600, 2))


@dataclass(frozen=True)
class OpKernel:
    """A kernel by name: its variants, and the model whose head_dim, epsilon and scale it is built for."""

    name: str
    spec: ModelSpec
    variants: tuple[Variant, ...]


def _variants(specs: tuple[ModelSpec, ...], *opcodes: Opcode) -> tuple[Variant, ...]:
    """The variants of these opcodes that the programs of these models hold, whatever the number of splits."""
    return tuple(dict.fromkeys(v for spec in specs for v in kernel_variants(spec) if v.opcode in opcodes))


def _merging(specs: tuple[ModelSpec, ...]) -> tuple[Variant, ...]:
    """The projections behind attention that merge splits."""
    matvecs = [(v, v.config) for v in _variants(specs, Opcode.MATVEC) if isinstance(v.config, MatvecConfig)]
    return tuple(variant for variant, config in matvecs if config.prologue is Prologue.MERGE)


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


MANY_HEADS_SPEC = _attention_spec(64, 12, 12)
"""A GPU has SMs for few splits of so many key/value heads: its kernel can merge more, but a few at a time."""

MERGING_SPECS = tuple(spec for spec in ATTENTION_SPECS if FUSED.possible(spec).merge)
"""Those whose projection behind attention merges a few splits."""


def _featured(head_dim: int) -> tuple[ModelSpec, ...]:
    """Everything that attention can have, of heads of a size; each with a layer where it does not count."""
    windows, norm = (LayerSpec(window=40), LayerSpec()), QkNorm(RMS, 1e-6, QkNormScope.HEAD)
    return (
        tiny_spec(
            head_dim=head_dim,
            num_heads=8,
            layers=windows,
            attention_soft_cap=2.0,
            attention_scale=0.2,
            rotary_dim=head_dim // 2,
        ),
        tiny_spec(head_dim=head_dim, qk_norm=norm, layers=(LayerSpec(rope=None), LayerSpec())),
        tiny_spec(
            head_dim=head_dim,
            num_heads=9,
            num_kv_heads=1,
            qk_norm=QkNorm(LAYER, 1e-5, QkNormScope.HEAD),
            rope=None,
            layers=tuple(LayerSpec(window=w, rope=None) for w in (1, 16)),
        ),
    )


ATTENTION_FEATURES = {head_dim: _featured(head_dim) for head_dim in HEAD_DIMS}


def _attention_kernel(head_dim: int) -> OpKernel:
    specs = tuple(spec for spec in ATTENTION_SPECS if spec.head_dim == head_dim)
    of_attention = _variants(specs, Opcode.ATTENTION, Opcode.ATTENTION_REDUCE)
    return OpKernel(f"attention-{head_dim}", specs[0], (*of_attention, *_merging(specs)))


def _attention_features_kernel(head_dim: int) -> OpKernel:
    specs = ATTENTION_FEATURES[head_dim]
    return OpKernel(f"attention-features-{head_dim}", specs[0], _variants(specs, Opcode.ATTENTION))


def _feature_kernel(name: str) -> OpKernel:
    """All that a model needs, fused and unfused."""
    spec = feature_spec(name)
    variants = dict.fromkeys((*kernel_variants(spec), *kernel_variants(spec, False)))
    return OpKernel(f"features-{name}", spec, tuple(variants))


def barrier_kernel(sms: int) -> OpKernel:
    """A model with barriers, and instructions that do nothing, for a launch of so many SMs."""
    spec = tiny_spec()
    extra = Variant("barrier", Opcode.BARRIER, BarrierConfig(sms)), Variant("no_op", Opcode.NO_OP, NoOpConfig())
    return OpKernel(f"barriers-{sms}", spec, (*kernel_variants(spec), *extra))


def with_no_ops(program: Program, kernel: OpKernel) -> Program:
    """A program of `barrier_kernel`'s model with a phase that does nothing in front of every other."""
    (variant,) = [v for v in kernel.variants if v.opcode is Opcode.NO_OP]
    phases: list[Phase] = []
    for phase in program.phases:
        phases.append(Phase(len(phases), f"{phase.name}.no_op", variant, 4))
        phases.append(replace(phase, index=len(phases)))  # a step ends with a sample
    return replace(program, phases=tuple(phases), variants=(*program.variants, variant))


_SMALL = tiny_spec(norm=NormSpec(RMS, NORM_EPS))
_WIDE = replace(_SMALL, hidden_size=2048)  # whose words lie closer together

KERNELS = {
    kernel.name: kernel
    for kernel in (
        OpKernel("matvec-kinds", _SMALL, MATVEC_KINDS),
        OpKernel("matvec-parts", _WIDE, MATVEC_PARTS),
        OpKernel("matvec-wide-norms", _WIDE, MATVEC_WIDE_NORMS),
        OpKernel("matvec-shapes", _SMALL, MATVEC_SHAPES),
        OpKernel("matvec-chunks", _WIDE, MATVEC_CHUNKS),
        OpKernel("matvec-own-kinds", _SMALL, MATVEC_OWN_KINDS),
        OpKernel("matvec-own-parts", _WIDE, MATVEC_OWN_PARTS),
        OpKernel(
            "embed-sample",
            _SMALL,
            (
                *_variants((*EMBED_SPECS, *EMBED_SCALED), Opcode.EMBED),
                ZERO,
                *(
                    variant
                    for spec in (SAMPLE_SPEC, LARGE_SAMPLE_SPEC)
                    for variant in lower(spec).variants
                    if variant.opcode is Opcode.SAMPLE or variant.name == "lm_head"
                ),
            ),
        ),
        *(_attention_kernel(head_dim) for head_dim in HEAD_DIMS),
        OpKernel(
            "attention-many-heads",
            MANY_HEADS_SPEC,
            _variants((MANY_HEADS_SPEC,), Opcode.ATTENTION, Opcode.ATTENTION_REDUCE),
        ),
        *(_attention_features_kernel(head_dim) for head_dim in HEAD_DIMS),
        *(_feature_kernel(name) for name in FEATURES),
    )
}

MATVECS = {v: kernel.name for kernel in KERNELS.values() if kernel.name.startswith("matvec-") for v in kernel.variants}
"""Every matvec that is run by itself, and its kernel."""
