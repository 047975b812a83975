"""Where the weights of a model lie on the device: which tensors make up each packed matrix and constant vector."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from jitmk.model.spec import ModelSpec, Role, WeightKey, weight_shapes
from jitmk.program.packing import GRAIN_BYTES, UNIT_ROWS, MatrixLayout, ceil_div


class Join(Enum):
    """How the rows of several tensors make one matrix or vector."""

    STACK = "stack"  # one below the other
    INTERLEAVE = "interleave"  # row by row in turn


@dataclass(frozen=True)
class Matrix:
    """A packed matrix in the weight arena, or (`packed` false) a row-major one.

    Attributes:
        name: for example "layers.0.qkv".
        keys: the tensors that it is made of.
        join: how their rows are put together.
        layout: shape and packed form.
        packed: false for an embedding table that is only looked up.
        offset: first byte in the weight arena, a multiple of GRAIN_BYTES.
    """

    name: str
    keys: tuple[WeightKey, ...]
    join: Join
    layout: MatrixLayout
    packed: bool
    offset: int

    @property
    def nbytes(self) -> int:
        if self.packed:
            return self.layout.nbytes
        return self.layout.rows * self.layout.columns * 2

    @property
    def grain(self) -> int:
        return self.offset // GRAIN_BYTES


@dataclass(frozen=True)
class Vector:
    """A constant fp32 vector (a norm's weight, a bias) in the constant arena; `offset` counts elements."""

    name: str
    keys: tuple[WeightKey, ...]
    join: Join
    values: int
    offset: int

    @property
    def padded_values(self) -> int:
        """Room for whole units, so that an epilogue may read 8 values at a time."""
        return ceil_div(self.values, UNIT_ROWS) * UNIT_ROWS


@dataclass(frozen=True)
class WeightPlan:
    """The two arenas that hold a model's weights."""

    matrices: dict[str, Matrix]
    vectors: dict[str, Vector]
    arena_bytes: int
    constant_values: int


def plan_weights(spec: ModelSpec) -> WeightPlan:
    """Lays out every matrix and vector of a model, in the order of use.

    Tied embeddings have one matrix, "lm_head", which the embedding looks up in its packed form.
    """
    matrices: dict[str, Matrix] = {}
    vectors: dict[str, Vector] = {}
    shapes = weight_shapes(spec)
    at_byte = at_value = 0

    def matrix(name: str, keys: tuple[WeightKey, ...], join: Join = Join.STACK, packed: bool = True) -> None:
        nonlocal at_byte
        layout = MatrixLayout(sum(shapes[key][0] for key in keys), shapes[keys[0]][1])
        matrices[name] = Matrix(name, keys, join, layout, packed, at_byte)
        at_byte += ceil_div(matrices[name].nbytes, GRAIN_BYTES) * GRAIN_BYTES

    def vector(name: str, keys: tuple[WeightKey, ...], join: Join = Join.STACK) -> None:
        nonlocal at_value
        vectors[name] = Vector(name, keys, join, sum(shapes[key][0] for key in keys), at_value)
        at_value += vectors[name].padded_values

    if not spec.tied_embeddings:
        matrix("embedding", (WeightKey(Role.EMBEDDING),), packed=False)
    for layer in range(spec.num_layers):

        def keys(*roles: Role, layer: int = layer) -> tuple[WeightKey, ...]:
            return tuple(WeightKey(role, layer) for role in roles)

        prefix = f"layers.{layer}."
        vector(prefix + "attention_norm", keys(Role.ATTENTION_NORM))
        vector(prefix + "mlp_norm", keys(Role.MLP_NORM))
        matrix(prefix + "qkv", keys(Role.Q, Role.K, Role.V))
        matrix(prefix + "o_proj", keys(Role.O))
        matrix(prefix + "gate_up", keys(Role.GATE, Role.UP), Join.INTERLEAVE)
        matrix(prefix + "down", keys(Role.DOWN))
        if spec.qkv_bias:
            vector(prefix + "qkv_bias", keys(Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS))
        if spec.o_bias:
            vector(prefix + "o_proj_bias", keys(Role.O_BIAS))
        if spec.mlp_bias:
            vector(prefix + "gate_up_bias", keys(Role.GATE_BIAS, Role.UP_BIAS), Join.INTERLEAVE)
            vector(prefix + "down_bias", keys(Role.DOWN_BIAS))
    vector("final_norm", (WeightKey(Role.FINAL_NORM),))
    matrix("lm_head", (WeightKey(Role.EMBEDDING if spec.tied_embeddings else Role.LM_HEAD),))
    return WeightPlan(matrices, vectors, at_byte, at_value)
