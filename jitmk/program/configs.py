"""The configurations of opcodes: what is a constant in the kernel's specialised code.

Everywhere, `output_copies` is how often a word of the bf16 output is published (0: there is none), and
`residual_copies` how often one of the fp32 residual that goes with it. A matvec's inputs are polled in copy
`sm mod copies`; every other read is of copy 0. A buffer with several copies is as long as its writer's config says, of
attention times the operand `splits`, which is what the words from one copy to the next follow from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from jitmk.model.spec import Activation, NormKind
from jitmk.program.packing import CHAINS, CHUNK_LIMIT, MatrixLayout, ceil_div

MAX_GROUP = 8
"""Query heads of an attention unit at most: the rows that the tensor-core fragment of the scores uses."""

SECTOR_WORDS = 4
"""Words of a sector of L2, 32 bytes: the bf16 results of a unit."""

LSE_WORDS = SECTOR_WORDS
"""Words that carry the same logarithm, that of a split's normaliser: a head of a split has a sector to itself. Where
several heads share one, all who poll queue at the same few lines."""

MERGED_SPLITS = 4
"""Splits of attention at most that the projection behind it can merge by itself (`Prologue.MERGE`)."""

MERGED_COLUMNS = 2048
"""Columns at most of such a projection: two quads for each lane of the consumer warps, times the splits."""

SHORT_HEAD = 64
"""Dims of a head of whose tiles consumer warps have registers for several."""

REDUCED_SPLITS = 32
"""Splits that ATTENTION_REDUCE has in flight at once, at most; of more it takes so many at a time."""

FEW_SPLITS = 16
"""The same where there are no more: fewer loads."""

ELEMENTWISE_VALUES = 256
"""Values of a unit of the opcodes that take a vector value by value."""


class Prologue(Enum):
    """What becomes of the input x of a matvec before it is multiplied."""

    NONE = "none"
    RMS = "rms"  # w x / rms(x): w is multiplied in, rounded to bf16; 1/rms, a scalar, is applied to the dot products
    LAYER = "layer"  # w (x - mean) / deviation + b, rounded to bf16
    MERGE = "merge"  # x are results of splits of attention: what ATTENTION_REDUCE would make of them


class Epilogue(Enum):
    """What becomes of the rows of a matvec."""

    STORE = "store"  # published as bf16
    RESIDUAL = "residual"  # scale * y is added to the residual: published as fp32 (the residual) and bf16
    ACTIVATED = "activated"  # f(y) is published as bf16
    GATED = "gated"  # rows are gate, up, gate, up, ...: f(gate) * up is published as bf16
    LOGITS = "logits"  # rows are the vocabulary: the best candidate is published, the logits stored on request


@dataclass(frozen=True)
class EmbedConfig:
    """residual = scale * table[token] + positions[position]. The table is a packed LM head (`tied`) or row-major.

    The position's row is added where there are learned `positions`; its table is row-major. Unit: 8 values.
    """

    vocab_size: int
    hidden_size: int
    tied: bool
    output_copies: int
    residual_copies: int = 1
    scale: float = 1.0
    positions: bool = False
    chunk_limit: int = CHUNK_LIMIT

    @property
    def layout(self) -> MatrixLayout:
        """Of the LM head."""
        return MatrixLayout(self.vocab_size, self.hidden_size, self.chunk_limit)


@dataclass(frozen=True)
class MatvecConfig:
    """y = epilogue(W prologue(x) + b). Unit: 8 rows.

    With a `post`-norm, x is not the input but the residual after the block before, whose output is the input:
    x = residual_in + post_scale * norm(input) in fp32. All of that is computed by every instruction for itself; where
    another block needs the sum, each unit publishes its part of it. RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467;
    LayerNorm: Ba et al. 2016, arXiv:1607.06450.

    Attributes:
        rows, columns, chunk_limit: the matrix's layout.
        epilogue, prologue: see there.
        norm_eps: of prologue and post-norm.
        norm_bias: whether the prologue LAYER adds a bias.
        heads: of attention, with the prologue MERGE; else 0.
        post: kind of the post-norm, or None. Not with the epilogue RESIDUAL or the prologue MERGE.
        post_bias: whether it adds a bias.
        post_scale: what it is multiplied with.
        post_sum: whether the sum behind a post-norm is published as residual_out, `sum_values` of it by each unit.
        bias: whether b is added to the rows.
        activation: f of ACTIVATED and GATED, else None.
        scale: what RESIDUAL and LOGITS multiply y with (b included), else 1.
        soft_cap: LOGITS become cap * tanh(y / cap), after the scale; None for no cap.
        input_copies: copies of the input.
        input_spread: the input buffer's.
        residual_copies: of residual_out, and of residual_in where a post-norm reads it whole.
        output_copies: see above.
        own_units: whether each consumer warp has units of its own, of which it publishes the rows, instead of a slice
            of every unit. Only where `can_own_units`.
        lone_units: whether no SM is expected to have more than one unit; right also where one has. Set when
            a kernel is rendered, for a GPU of so many SMs; not in programs.
        behind_own_units: whether the input comes from a matvec with units of a warp's own. Warps come from there when
            they have published, and had better not look at once for what others publish at the same time
            (`Tuning.first_look`).
    """

    rows: int
    columns: int
    epilogue: Epilogue
    prologue: Prologue = Prologue.NONE
    norm_eps: float = 0.0
    norm_bias: bool = False
    heads: int = 0
    post: NormKind | None = None
    post_bias: bool = False
    post_scale: float = 1.0
    post_sum: bool = False
    bias: bool = False
    activation: Activation | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    input_copies: int = 1
    input_spread: int = 1
    residual_copies: int = 1
    output_copies: int = 1
    chunk_limit: int = CHUNK_LIMIT
    own_units: bool = False
    lone_units: bool = False
    behind_own_units: bool = False

    @property
    def layout(self) -> MatrixLayout:
        return MatrixLayout(self.rows, self.columns, self.chunk_limit)

    @property
    def can_own_units(self) -> bool:
        """Whether a warp's registers can hold a unit. Logits are the storer's, who samples from them."""
        layout = self.layout
        return layout.chunks == 1 and layout.blocks <= CHAINS and self.epilogue is not Epilogue.LOGITS

    @property
    def needs_all(self) -> bool:
        """Whether none of the input can be used before all of it is known."""
        return self.prologue is Prologue.LAYER or self.post is not None

    @property
    def input_in_shared(self) -> bool:
        """Whether a consumer warp keeps its input in shared memory (vm/input.cuh): where it runs over chunks in a loop,
        or where weights that wait for the input fill its registers."""
        return self.layout.chunks > (4 if self.needs_all else 2)

    @property
    def sum_values(self) -> int:
        """Values of the sum that a unit publishes; the last units may have fewer, or none."""
        return ceil_div(self.columns, self.layout.units)


@dataclass(frozen=True)
class AttentionConfig:
    """Attention of one new token over the cache: norms and rotates q and k, appends k and v, online softmax.

    A unit is a head group (up to MAX_GROUP query heads of one key/value head) over one split of the context. Each split
    publishes its own normalised output; where there are several, also the logarithm of its normaliser, the sum of 2 to
    the power of each score in units of log2. A split that has no positions has zeros and -inf. The attention output is
    the mean of the splits, weighed by 2^lse (Flash-Decoding, Dao et al. 2023); ATTENTION_REDUCE computes it, or the
    projection behind (`Prologue.MERGE`).

    Attributes:
        heads, kv_heads, head_dim, group: shapes; `group` query heads are a unit's at most.
        scale: of the scores.
        output_copies: of the attention output; of partial results there is one.
        rotary_dim: leading dimensions of a head that are rotated where the operand `rope` is not -1; 0 for none ever.
        rope_stride: entries (cos and sin) of the rope tensor from one position to the next.
        window: whether the operand `window` may be other than 0.
        soft_cap: scaled scores s become cap * tanh(s / cap); None for no cap.
        qk_norm: kind of the norm of each query and key head before its rotation, with one weight [head_dim] for all
            heads and no bias; None for none. Its result is not rounded before the rotation.
        qk_norm_eps: of that norm.
        append: whether the unit of a head's new token appends it; where not, KV_APPEND has, and queries and keys come
            normed and rotated.
        merged: whether the projection behind merges the results of `MERGED_SPLITS` splits or fewer: they have as many
            copies then as the output, for as many SMs poll them.
        early_tiles: how many tiles of the cache a warp reads before it has the queries, at most.
    """

    heads: int
    kv_heads: int
    head_dim: int
    group: int
    scale: float
    output_copies: int
    rotary_dim: int = 0
    rope_stride: int = 0
    window: bool = False
    soft_cap: float | None = None
    qk_norm: NormKind | None = None
    qk_norm_eps: float = 0.0
    append: bool = True
    merged: bool = False
    early_tiles: int = 1

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


@dataclass(frozen=True)
class AttentionReduceConfig:
    """Merges the partial results of the splits of one query head (a unit).

    Attributes:
        heads, head_dim, output_copies: of the output.
        only_few: whether no more than FEW_SPLITS are expected; right also where there are. Set when a kernel is
            rendered, for a GPU of so many SMs; not in programs.
    """

    heads: int
    head_dim: int
    output_copies: int
    only_few: bool = False


@dataclass(frozen=True)
class SampleConfig:
    """Chooses the best of the LM head's candidates; it is the next token."""

    vocab_size: int


@dataclass(frozen=True)
class NormConfig:
    """output = norm(input), group by group (a unit each): bf16 in and out.

    Attributes:
        kind: RMS or LAYER.
        groups, group: how many groups there are, and values of each.
        eps: of the norm.
        bias: whether a bias is added (LAYER).
        shared: whether weight and bias are [group], the same for all groups, or [groups * group].
        output_copies: more than 1 only where the output has groups * group values.
    """

    kind: NormKind
    groups: int
    group: int
    eps: float
    bias: bool
    shared: bool
    output_copies: int


@dataclass(frozen=True)
class ResidualNormAddConfig:
    """residual_out = residual_in + scale * norm(input): fp32; input is bf16. Unit: 256 values, of all `values`."""

    values: int
    kind: NormKind
    eps: float
    bias: bool
    scale: float
    output_copies: int
    residual_copies: int


@dataclass(frozen=True)
class ResidualAddConfig:
    """residual_out = residual_in + scale * input: fp32; input is bf16. Unit: 256 values."""

    values: int
    scale: float
    output_copies: int
    residual_copies: int


@dataclass(frozen=True)
class RopeConfig:
    """Rotates query and key heads (a unit each) of a buffer that is laid out as qkv; values are left out.

    `rotary_dim` and `rope_stride` are as for attention.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_stride: int


@dataclass(frozen=True)
class KvAppendConfig:
    """Appends key and value of a key/value head (a unit) to the cache, as they are.

    Publishes one fp32 word a head: the position. Like attention, it then releases the head to the next step's loaders.
    """

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class ActivateConfig:
    """output = f(input), bf16. Unit: 256 values."""

    values: int
    activation: Activation
    output_copies: int


@dataclass(frozen=True)
class GatedActivateConfig:
    """output = f(gate) * up, bf16, of an input gate, up, gate, up, ... Unit: 256 values of the output, `values`."""

    values: int
    activation: Activation
    output_copies: int


@dataclass(frozen=True)
class AddConfig:
    """output = input + other, bf16. Unit: 256 values."""

    values: int
    output_copies: int


@dataclass(frozen=True)
class CopyConfig:
    """Copies `values` bf16 values from the operand `first` on to the same place. Unit: 256 values.

    `output_copies` above 1 only where the output has as many values.
    """

    values: int
    output_copies: int


@dataclass(frozen=True)
class ZeroConfig:
    """output = 0: bf16. Unit: 256 values."""

    values: int
    output_copies: int


@dataclass(frozen=True)
class BarrierConfig:
    """Every SM waits here until all have come: what they did before it, in program order, is visible after it.

    `arrivals` is the number of SMs, of units, and of fp32 words (which hold 0).
    """

    arrivals: int


@dataclass(frozen=True)
class NoOpConfig:
    """Nothing: it neither reads nor writes."""


Config = (
    EmbedConfig
    | MatvecConfig
    | AttentionConfig
    | AttentionReduceConfig
    | SampleConfig
    | NormConfig
    | ResidualNormAddConfig
    | ResidualAddConfig
    | RopeConfig
    | KvAppendConfig
    | ActivateConfig
    | GatedActivateConfig
    | AddConfig
    | CopyConfig
    | ZeroConfig
    | BarrierConfig
    | NoOpConfig
)
