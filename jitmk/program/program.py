"""A program: the phases of one step, the buffers between them, and the values that each unit reads and writes.

Buffers are in single-assignment form: a step writes every value once, in one phase. That is what makes the order of
instructions checkable, and what lets the words in a buffer vouch for themselves by epoch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from jitmk.model.spec import Activation
from jitmk.program.isa import Opcode
from jitmk.program.packing import UNIT_ROWS, MatrixLayout, ceil_div

WORD_ALIGNMENT = 32
"""Buffers begin at multiples of this many words (256 bytes)."""


class BufferKind(Enum):
    """What a word of a buffer holds beside its epoch."""

    BF16 = "bf16"  # two consecutive values
    FP32 = "fp32"  # one value
    CANDIDATE = "candidate"  # the LM head's best tokens, two words for each of its instructions: key, token id


MAX_CANDIDATES = 1024
"""LM head instructions of a step at most; the candidate buffer has room for this many."""


@dataclass(frozen=True)
class Buffer:
    """A vector between phases.

    Attributes:
        name: unique in the program.
        kind: what a word holds.
        values: logical values of one token.
        tokens: sequences in the batch.
        copies: how often each word is published; SM i polls copy i mod copies, so that fewer SMs poll an L2 line.
        offset: first word, counted from the start of the word arena.
    """

    name: str
    kind: BufferKind
    values: int
    tokens: int
    copies: int
    offset: int

    @property
    def words(self) -> int:
        """Words of one token in one copy."""
        if self.kind is BufferKind.CANDIDATE:
            return 2 * MAX_CANDIDATES
        return ceil_div(self.values, 2) if self.kind is BufferKind.BF16 else self.values

    @property
    def token_stride(self) -> int:
        """Words from one token to the next."""
        return ceil_div(self.words, WORD_ALIGNMENT) * WORD_ALIGNMENT

    @property
    def copy_stride(self) -> int:
        """Words from one copy to the next."""
        return self.tokens * self.token_stride

    @property
    def total_words(self) -> int:
        return self.copies * self.copy_stride


class Epilogue(Enum):
    """What becomes of the rows of a matvec."""

    STORE = "store"  # published as bf16
    RESIDUAL = "residual"  # added to the residual: published as fp32 (the residual) and bf16 (the next input)
    GATED = "gated"  # rows are gate, up, gate, up, ...: f(gate) * up is published as bf16
    LOGITS = "logits"  # rows are the vocabulary: the best candidate is published, the logits stored on request


@dataclass(frozen=True)
class EmbedConfig:
    """residual = table[token]. The table is a packed LM head (`tied`) or row-major."""

    vocab_size: int
    hidden_size: int
    tied: bool
    output_copies: int


@dataclass(frozen=True)
class MatvecConfig:
    """y = epilogue(W prologue(x)).

    The prologue of a normed input multiplies with the norm's weight; 1/rms, a scalar, is applied to the dot products
    (RMSNorm, Zhang and Sennrich 2019, arXiv:1910.07467).
    """

    rows: int
    columns: int
    epilogue: Epilogue
    norm: bool
    norm_eps: float
    bias: bool
    activation: Activation | None
    input_copies: int
    output_copies: int

    @property
    def layout(self) -> MatrixLayout:
        return MatrixLayout(self.rows, self.columns)


@dataclass(frozen=True)
class AttentionConfig:
    """Attention of one new token over the cache: rotates q and k, appends k and v, online softmax.

    A unit is a head group (up to MAX_GROUP query heads of one key/value head) over one split of the context.
    With `partial` it publishes unnormalised sums, running maximum and normaliser for ATTENTION_REDUCE
    (Flash-Decoding, Dao et al. 2023); without, the context is one split and the unit publishes the attention output.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    group: int
    scale: float
    partial: bool
    output_copies: int

    @property
    def groups_per_kv_head(self) -> int:
        return ceil_div(self.heads // self.kv_heads, self.group)

    @property
    def groups(self) -> int:
        return self.kv_heads * self.groups_per_kv_head

    def group_heads(self, group: int) -> range:
        """The query heads of a head group."""
        ratio = self.heads // self.kv_heads
        kv_head, part = divmod(group, self.groups_per_kv_head)
        return range(kv_head * ratio + part * self.group, kv_head * ratio + min(ratio, (part + 1) * self.group))

    def group_kv_head(self, group: int) -> int:
        return group // self.groups_per_kv_head


MAX_GROUP = 8
"""Query heads of an attention unit at most: the rows that the tensor-core fragment of the scores uses."""

PARTIAL_EXTRA = 2
"""Values of a partial attention result behind its head_dim sums: the maximum (in units of log2) and the normaliser."""


@dataclass(frozen=True)
class AttentionReduceConfig:
    """Merges the partial results of the splits of one query head (a unit)."""

    heads: int
    head_dim: int
    output_copies: int


@dataclass(frozen=True)
class SampleConfig:
    """Chooses the best of the LM head's candidates; it is the next token."""

    vocab_size: int


Config = EmbedConfig | MatvecConfig | AttentionConfig | AttentionReduceConfig | SampleConfig


@dataclass(frozen=True)
class Variant:
    """An opcode specialised to shapes: one piece of code in the kernel."""

    name: str
    opcode: Opcode
    config: Config


@dataclass(frozen=True)
class Span:
    """Values [begin, end) of a buffer, the same of every token."""

    buffer: str
    begin: int
    end: int


@dataclass(frozen=True)
class Phase:
    """One operation of a step over the whole GPU.

    Attributes:
        index: place in the program; the program's order is a topological order.
        name: for example "layers.3.gate_up".
        variant: the code that runs it.
        units: how many units it is dealt in.
        layer: the layer, or None.
        buffers: buffer operands by name (as in `isa.OPERANDS`).
        weights: name of the packed matrix, or of the embedding table.
        norm, bias: names of constant vectors.
        splits: parts of the context (ATTENTION, ATTENTION_REDUCE).
    """

    index: int
    name: str
    variant: Variant
    units: int
    layer: int | None = None
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    weights: str | None = None
    norm: str | None = None
    bias: str | None = None
    splits: int = 1

    def reads(self, unit: int) -> tuple[Span, ...]:
        """What a unit reads of other phases' outputs in the same step."""
        config = self.variant.config
        if isinstance(config, EmbedConfig):
            return ()
        if isinstance(config, MatvecConfig):
            spans = [_whole(self.buffers["input"])]
            if config.epilogue is Epilogue.RESIDUAL:
                spans.append(_rows(self.buffers["residual_in"], unit))
            return tuple(spans)
        if isinstance(config, AttentionConfig):
            return self._attention_reads(config, unit)
        if isinstance(config, AttentionReduceConfig):
            return tuple(self._partial_span(self.buffers["input"], config, s, unit) for s in range(self.splits))
        return (_whole(self.buffers["input"]),)

    def writes(self, unit: int) -> tuple[Span, ...]:
        """What a unit writes for other phases of the same step."""
        config = self.variant.config
        if isinstance(config, EmbedConfig):
            return _rows(self.buffers["output"], unit), _rows(self.buffers["residual_out"], unit)
        if isinstance(config, MatvecConfig):
            output = self.buffers["output"]
            if config.epilogue is Epilogue.GATED:
                return (_rows(output, unit, UNIT_ROWS // 2),)
            if config.epilogue is Epilogue.RESIDUAL:
                return _rows(output, unit), _rows(self.buffers["residual_out"], unit)
            return (_rows(output, unit),)
        if isinstance(config, AttentionConfig):
            group, split = divmod(unit, self.splits)
            heads = config.group_heads(group)
            output = self.buffers["output"]
            if config.partial:
                return tuple(self._partial_span(output, config, split, head) for head in heads)
            return (Span(output.name, heads.start * config.head_dim, heads.stop * config.head_dim),)
        if isinstance(config, AttentionReduceConfig):
            return (Span(self.buffers["output"].name, unit * config.head_dim, (unit + 1) * config.head_dim),)
        return ()

    def _attention_reads(self, config: AttentionConfig, unit: int) -> tuple[Span, ...]:
        group, split = divmod(unit, self.splits)
        heads, kv_head, d = config.group_heads(group), config.group_kv_head(group), config.head_dim
        name = self.buffers["input"].name
        spans = [Span(name, heads.start * d, heads.stop * d)]
        if split == self.splits - 1:  # the last split also holds the new token
            key = (config.heads + kv_head) * d
            value = key + config.kv_heads * d
            spans += [Span(name, key, key + d), Span(name, value, value + d)]
        return tuple(spans)

    @staticmethod
    def _partial_span(buffer: Buffer, config: AttentionConfig | AttentionReduceConfig, split: int, head: int) -> Span:
        size = config.head_dim + PARTIAL_EXTRA
        begin = (split * config.heads + head) * size
        return Span(buffer.name, begin, begin + size)


def _whole(buffer: Buffer) -> Span:
    return Span(buffer.name, 0, buffer.values)


def _rows(buffer: Buffer, unit: int, rows: int = UNIT_ROWS) -> Span:
    return Span(buffer.name, unit * rows, min(buffer.values, (unit + 1) * rows))


@dataclass(frozen=True)
class Program:
    """One step of one model.

    Attributes:
        phases: in a topological order.
        buffers: every buffer between phases, laid out in the word arena.
        variants: the code that the phases need; an instruction's `variant` is an index into this.
        tokens: sequences in the batch.
        splits: parts into which attention splits the context.
        arena_words: words of the arena.
    """

    phases: tuple[Phase, ...]
    buffers: tuple[Buffer, ...]
    variants: tuple[Variant, ...]
    tokens: int
    splits: int
    arena_words: int

    def variant_index(self, variant: Variant) -> int:
        return self.variants.index(variant)
