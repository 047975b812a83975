"""ModelSpec: what a decoder computes, as a plain value.

Everything below `model/families/` sees only this: lowering, code generation, prefill and the reference never ask
which family a model came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Activation(Enum):
    """The nonlinearity of the MLP, by the name that config.json's `hidden_act` uses."""

    SILU = "silu"


class RopeKind(Enum):
    """How rotary frequencies are derived, by the name that config.json's `rope_type` uses."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of one model.

    Attributes:
        kind: which rule turns `theta` into frequencies.
        theta: base of the geometric progression of wavelengths.
        rotary_dim: how many leading dimensions of a head are rotated; pairs are (i, i + rotary_dim / 2).
        factor: context extension factor of every kind but DEFAULT.
        original_max_positions: context the checkpoint was pretrained for (DYNAMIC, LLAMA3, YARN).
        low_freq_factor, high_freq_factor: LLAMA3's band limits.
        beta_fast, beta_slow: YARN's ramp limits, in rotations over the original context.
        attention_factor: what cos and sin are multiplied with (YARN's temperature); 1 elsewhere.
        truncate: whether YARN rounds its ramp limits to whole dimensions.
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


@dataclass(frozen=True)
class ModelSpec:
    """One decoder-only transformer with RMSNorm, rotary positions, grouped-query attention and a gated MLP.

    Attributes:
        family: the architecture family that read the config, for messages only.
        vocab_size, hidden_size, intermediate_size, num_layers: the usual.
        num_heads, num_kv_heads: query heads, and key/value heads that groups of query heads share (GQA).
        head_dim: dimensions of a head; need not be hidden_size / num_heads.
        norm_eps: epsilon of every RMSNorm.
        activation: f of the MLP down(f(gate(x)) * up(x)).
        rope: rotary embedding.
        max_positions: the longest context, prompt and generation together, in tokens.
        tied_embeddings: whether the LM head is the embedding matrix.
        qkv_bias, o_bias, mlp_bias: which projections add a bias.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: Activation
    rope: RopeSpec
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qkv_rows(self) -> int:
        """Rows of the stacked query, key and value projections."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_size(self) -> int:
        """Columns of the attention output projection: all query heads side by side."""
        return self.num_heads * self.head_dim

    @property
    def attention_scale(self) -> float:
        """What query-key dot products are multiplied with before the softmax."""
        return float(self.head_dim**-0.5)

    @property
    def parameters(self) -> int:
        """Number of weights, the norms and biases included, tied matrices counted once."""
        h, m = self.hidden_size, self.intermediate_size
        layer = self.qkv_rows * (h + self.qkv_bias) + h * (self.attention_size + self.o_bias)
        layer += 2 * m * (h + self.mlp_bias) + h * (m + self.mlp_bias) + 2 * h
        return self.num_layers * layer + self.vocab_size * h * (1 if self.tied_embeddings else 2) + h


class Role(Enum):
    """What a checkpoint tensor is for. Families map their tensor names to these."""

    EMBEDDING = "embedding"  # [vocab_size, hidden_size]
    FINAL_NORM = "final_norm"  # [hidden_size]
    LM_HEAD = "lm_head"  # [vocab_size, hidden_size]; absent when tied
    ATTENTION_NORM = "attention_norm"  # [hidden_size], per layer from here on
    Q = "q"  # [num_heads * head_dim, hidden_size]
    K = "k"  # [num_kv_heads * head_dim, hidden_size]
    V = "v"
    O = "o"  # noqa: E741  [hidden_size, num_heads * head_dim]
    MLP_NORM = "mlp_norm"  # [hidden_size]
    GATE = "gate"  # [intermediate_size, hidden_size]
    UP = "up"
    DOWN = "down"  # [hidden_size, intermediate_size]
    Q_BIAS = "q_bias"  # [rows of the matrix it belongs to], as are the others
    K_BIAS = "k_bias"
    V_BIAS = "v_bias"
    O_BIAS = "o_bias"
    GATE_BIAS = "gate_bias"
    UP_BIAS = "up_bias"
    DOWN_BIAS = "down_bias"


@dataclass(frozen=True)
class WeightKey:
    """One logical tensor of a model: its role, and its layer where the role is per layer (else None)."""

    role: Role
    layer: int | None = None

    def __str__(self) -> str:
        return self.role.value if self.layer is None else f"layers.{self.layer}.{self.role.value}"


def weight_shapes(spec: ModelSpec) -> dict[WeightKey, tuple[int, ...]]:
    """Every tensor that a model of this spec has, with its shape, in the order of use."""
    h, m, d = spec.hidden_size, spec.intermediate_size, spec.head_dim
    q, kv = spec.num_heads * d, spec.num_kv_heads * d
    shapes: dict[WeightKey, tuple[int, ...]] = {WeightKey(Role.EMBEDDING): (spec.vocab_size, h)}
    for layer in range(spec.num_layers):
        of_layer: dict[Role, tuple[int, ...]] = {
            Role.ATTENTION_NORM: (h,),
            Role.Q: (q, h),
            Role.K: (kv, h),
            Role.V: (kv, h),
            Role.O: (h, q),
            Role.MLP_NORM: (h,),
            Role.GATE: (m, h),
            Role.UP: (m, h),
            Role.DOWN: (h, m),
        }
        if spec.qkv_bias:
            of_layer |= {Role.Q_BIAS: (q,), Role.K_BIAS: (kv,), Role.V_BIAS: (kv,)}
        if spec.o_bias:
            of_layer[Role.O_BIAS] = (h,)
        if spec.mlp_bias:
            of_layer |= {Role.GATE_BIAS: (m,), Role.UP_BIAS: (m,), Role.DOWN_BIAS: (h,)}
        shapes |= {WeightKey(role, layer): shape for role, shape in of_layer.items()}
    shapes[WeightKey(Role.FINAL_NORM)] = (h,)
    if not spec.tied_embeddings:
        shapes[WeightKey(Role.LM_HEAD)] = (spec.vocab_size, h)
    return shapes
