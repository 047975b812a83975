"""ModelSpec: what a decoder computes, as a plain value that composes parts.

Everything below `model/families/` sees only this: lowering, code generation, prefill and the reference never ask
which family a model came from.

With x the residual, n a norm and p a post-norm (each left out where the spec has none), a layer computes

    sequential   x = x + residual_scale * p(attention(n(x)));  x = x + residual_scale * p(mlp(n(x)))
    parallel     x = x + residual_scale * (p(attention(n(x))) + p(mlp(n(x)))), with one n for both

where mlp(x) = down(f(gate(x)) * up(x)) or, not gated, down(f(up(x))).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Activation(Enum):
    """The nonlinearity of the MLP."""

    SILU = "silu"
    GELU = "gelu"  # x * Phi(x), with the error function
    GELU_TANH = "gelu_tanh"  # the tanh approximation of it
    RELU = "relu"


class NormKind(Enum):
    """What a norm divides by: the root mean square, or the standard deviation after the mean was subtracted."""

    RMS = "rms"
    LAYER = "layer"


@dataclass(frozen=True)
class NormSpec:
    """The norms over hidden_size, which are of one kind in a model.

    Attributes:
        kind: RMS or LAYER.
        eps: added to the mean square (RMS) or the variance (LAYER).
        offset: added to every stored weight when it is loaded (Gemma stores w - 1); see `weight_offset`.
        bias: whether a bias is added; LAYER only.
    """

    kind: NormKind
    eps: float
    offset: float = 0.0
    bias: bool = False


class QkNormScope(Enum):
    """What a norm of queries and keys, in front of their rotation, runs over."""

    HEAD = "head"  # each head; one weight [head_dim] for all heads
    HEAD_WEIGHTS = "head_weights"  # each head; a weight [heads, head_dim]
    PROJECTION = "projection"  # all queries (all keys) of a token together; a weight [heads * head_dim]


@dataclass(frozen=True)
class QkNorm:
    """Norms of queries and keys, without bias. `offset` as in NormSpec."""

    kind: NormKind
    eps: float
    scope: QkNormScope
    offset: float = 0.0


class RopeKind(Enum):
    """How rotary frequencies are derived, by the name that config.json's `rope_type` uses."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    Pairs that a checkpoint interleaves are no kind of their own: its family permutes the rows of queries and keys when
    they are loaded, because a permutation that both share changes no dot product.

    Attributes:
        kind: which rule turns `theta` into frequencies.
        theta: base of the geometric progression of wavelengths.
        rotary_dim: how many leading dimensions of a head are rotated; pairs are (i, i + rotary_dim / 2).
        factor: context extension factor of every kind but DEFAULT and LONGROPE.
        original_max_positions: context the checkpoint was pretrained for (DYNAMIC, LLAMA3, YARN, LONGROPE).
        low_freq_factor, high_freq_factor: LLAMA3's band limits.
        beta_fast, beta_slow: YARN's ramp limits, in rotations over the original context.
        attention_factor: what cos and sin are multiplied with (YARN, LONGROPE); 1 elsewhere.
        truncate: whether YARN rounds its ramp limits to whole dimensions.
        short_factors, long_factors: LONGROPE's divisors of the frequencies, rotary_dim / 2 each, for sequences up to
            the original context and for longer ones.
    """

    kind: RopeKind
    theta: float
    rotary_dim: int
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer.

    Attributes:
        window: a token attends to the last `window` positions, itself included; None for all.
        rope: index into ModelSpec.ropes; None for a layer that does not rotate.
    """

    window: int | None = None
    rope: int | None = 0


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One decoder-only transformer.

    Attributes:
        family: the architecture family that read the config, for messages only.
        vocab_size, hidden_size, intermediate_size, num_layers: the usual.
        num_heads, num_kv_heads: query heads, and key/value heads that groups of query heads share (GQA).
        head_dim: dimensions of a head; need not be hidden_size / num_heads.
        norm: all norms over hidden_size; the final one is always there.
        pre_norm: whether a norm stands in front of attention and of the MLP.
        post_norm: whether a norm stands behind them, before the residual is added.
        parallel: whether attention and MLP read the same norm of the same residual.
        ropes: the rotary embeddings that layers refer to; empty where no layer rotates.
        learned_positions: whether an embedding of the position is added to the token's.
        layers: one entry a layer.
        qk_norm: norms of queries and keys, if any.
        attention_scale: what query-key dot products are multiplied with before the softmax.
        attention_soft_cap: scaled scores s become cap * tanh(s / cap); None for no cap.
        activation: f of the MLP.
        gated: whether the MLP has a gate.
        qkv_bias, o_bias, mlp_bias: which projections add a bias.
        embedding_scale: what the token's embedding is multiplied with.
        residual_scale: what each block's output is multiplied with before it is added.
        logit_scale: what logits are multiplied with.
        logit_soft_cap: logits x become cap * tanh(x / cap), after their scale; None for no cap.
        max_positions: the longest context, prompt and generation together, in tokens.
        tied_embeddings: whether the LM head is the embedding matrix.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: NormSpec
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    ropes: tuple[RopeSpec, ...] = ()
    learned_positions: bool = False
    layers: tuple[LayerSpec, ...]
    qk_norm: QkNorm | None = None
    attention_scale: float
    attention_soft_cap: float | None = None
    activation: Activation
    gated: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    max_positions: int
    tied_embeddings: bool

    @property
    def recompute_after(self) -> int | None:
        """The length in tokens past which LongRoPE has other frequencies for all positions; None if there is none.

        A sequence that grows past it is computed anew, as transformers does, so that its keys are rotated alike.
        """
        switches = [rope.original_max_positions for rope in self.ropes if rope.kind is RopeKind.LONGROPE]
        return min(switches) if switches and min(switches) < self.max_positions else None

    @property
    def query_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_rows(self) -> int:
        """Rows of the stacked query, key and value projections."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def gate_up_rows(self) -> int:
        """Rows of the first projection of the MLP: gate and up stacked, or just up."""
        return self.intermediate_size * (2 if self.gated else 1)

    @property
    def attention_size(self) -> int:
        """Columns of the attention output projection: all query heads side by side."""
        return self.num_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """The most leading dimensions of a head that any layer rotates; 0 where none does."""
        return max((rope.rotary_dim for rope in self.ropes), default=0)

    @property
    def parameters(self) -> int:
        """Number of weights, the norms and biases included, tied matrices counted once."""
        return sum(math.prod(shape) for shape in weight_shapes(self).values())


class Role(Enum):
    """What a checkpoint tensor is for. Families map their tensor names to these."""

    EMBEDDING = "embedding"  # [vocab_size, hidden_size]
    POSITION_EMBEDDING = "position_embedding"  # [max_positions, hidden_size]
    FINAL_NORM = "final_norm"  # [hidden_size]
    FINAL_NORM_BIAS = "final_norm_bias"
    LM_HEAD = "lm_head"  # [vocab_size, hidden_size]; absent when tied
    ATTENTION_NORM = "attention_norm"  # [hidden_size], per layer from here on; of both blocks in a parallel model
    ATTENTION_NORM_BIAS = "attention_norm_bias"
    Q = "q"  # [num_heads * head_dim, hidden_size]
    K = "k"  # [num_kv_heads * head_dim, hidden_size]
    V = "v"
    Q_NORM = "q_norm"  # shape by QkNormScope
    K_NORM = "k_norm"
    O = "o"  # noqa: E741  [hidden_size, num_heads * head_dim]
    ATTENTION_POST_NORM = "attention_post_norm"  # [hidden_size]
    ATTENTION_POST_NORM_BIAS = "attention_post_norm_bias"
    MLP_NORM = "mlp_norm"  # [hidden_size]
    MLP_NORM_BIAS = "mlp_norm_bias"
    GATE = "gate"  # [intermediate_size, hidden_size]
    UP = "up"
    DOWN = "down"  # [hidden_size, intermediate_size]
    MLP_POST_NORM = "mlp_post_norm"  # [hidden_size]
    MLP_POST_NORM_BIAS = "mlp_post_norm_bias"
    Q_BIAS = "q_bias"  # [rows of the matrix it belongs to], as are the others
    K_BIAS = "k_bias"
    V_BIAS = "v_bias"
    O_BIAS = "o_bias"
    GATE_BIAS = "gate_bias"
    UP_BIAS = "up_bias"
    DOWN_BIAS = "down_bias"


HIDDEN_NORMS = frozenset(
    {Role.ATTENTION_NORM, Role.ATTENTION_POST_NORM, Role.MLP_NORM, Role.MLP_POST_NORM, Role.FINAL_NORM}
)
"""Weights of the norms that NormSpec describes."""

QK_NORMS = frozenset({Role.Q_NORM, Role.K_NORM})
"""Weights of the norms that QkNorm describes."""


@dataclass(frozen=True)
class WeightKey:
    """One logical tensor of a model: its role, and its layer where the role is per layer (else None)."""

    role: Role
    layer: int | None = None

    def __str__(self) -> str:
        return self.role.value if self.layer is None else f"layers.{self.layer}.{self.role.value}"


def weight_offset(spec: ModelSpec, role: Role) -> float:
    """What is added, in fp32, to every element of a stored tensor to have the weight that the model computes with."""
    if role in HIDDEN_NORMS:
        return spec.norm.offset
    if role in QK_NORMS and spec.qk_norm is not None:
        return spec.qk_norm.offset
    return 0.0


def weight_shapes(spec: ModelSpec) -> dict[WeightKey, tuple[int, ...]]:
    """Every tensor that a model of this spec has, with its shape, in the order of use."""
    h = spec.hidden_size
    shapes: dict[WeightKey, tuple[int, ...]] = {WeightKey(Role.EMBEDDING): (spec.vocab_size, h)}
    if spec.learned_positions:
        shapes[WeightKey(Role.POSITION_EMBEDDING)] = (spec.max_positions, h)
    of_layer = _attention_shapes(spec) | _mlp_shapes(spec)
    for layer in range(spec.num_layers):
        shapes |= {WeightKey(role, layer): shape for role, shape in of_layer.items()}
    shapes |= {
        WeightKey(role): shape for role, shape in _norm_shapes(spec, Role.FINAL_NORM, Role.FINAL_NORM_BIAS).items()
    }
    if not spec.tied_embeddings:
        shapes[WeightKey(Role.LM_HEAD)] = (spec.vocab_size, h)
    return shapes


def _norm_shapes(spec: ModelSpec, weight: Role, bias: Role) -> dict[Role, tuple[int, ...]]:
    shape = (spec.hidden_size,)
    return {weight: shape, bias: shape} if spec.norm.bias else {weight: shape}


def _attention_shapes(spec: ModelSpec) -> dict[Role, tuple[int, ...]]:
    h, d = spec.hidden_size, spec.head_dim
    q, kv = spec.num_heads * d, spec.num_kv_heads * d
    shapes: dict[Role, tuple[int, ...]] = {}
    if spec.pre_norm:
        shapes |= _norm_shapes(spec, Role.ATTENTION_NORM, Role.ATTENTION_NORM_BIAS)
    shapes |= {Role.Q: (q, h), Role.K: (kv, h), Role.V: (kv, h), Role.O: (h, q)}
    if spec.qkv_bias:
        shapes |= {Role.Q_BIAS: (q,), Role.K_BIAS: (kv,), Role.V_BIAS: (kv,)}
    if spec.o_bias:
        shapes[Role.O_BIAS] = (h,)
    if spec.qk_norm is not None:
        shapes[Role.Q_NORM] = _qk_norm_shape(spec.qk_norm.scope, spec.num_heads, d)
        shapes[Role.K_NORM] = _qk_norm_shape(spec.qk_norm.scope, spec.num_kv_heads, d)
    if spec.post_norm:
        shapes |= _norm_shapes(spec, Role.ATTENTION_POST_NORM, Role.ATTENTION_POST_NORM_BIAS)
    return shapes


def _qk_norm_shape(scope: QkNormScope, heads: int, head_dim: int) -> tuple[int, ...]:
    if scope is QkNormScope.HEAD:
        return (head_dim,)
    return (heads, head_dim) if scope is QkNormScope.HEAD_WEIGHTS else (heads * head_dim,)


def _mlp_shapes(spec: ModelSpec) -> dict[Role, tuple[int, ...]]:
    h, m = spec.hidden_size, spec.intermediate_size
    shapes: dict[Role, tuple[int, ...]] = {}
    if spec.pre_norm and not spec.parallel:
        shapes |= _norm_shapes(spec, Role.MLP_NORM, Role.MLP_NORM_BIAS)
    if spec.gated:
        shapes[Role.GATE] = (m, h)
    shapes |= {Role.UP: (m, h), Role.DOWN: (h, m)}
    if spec.mlp_bias and spec.gated:
        shapes[Role.GATE_BIAS] = (m,)
    if spec.mlp_bias:
        shapes |= {Role.UP_BIAS: (m,), Role.DOWN_BIAS: (h,)}
    if spec.post_norm:
        shapes |= _norm_shapes(spec, Role.MLP_POST_NORM, Role.MLP_POST_NORM_BIAS)
    return shapes
