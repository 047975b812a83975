"""Where the weights of a model lie on the device: which tensors make up each packed matrix and constant vector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from jitmk.model.spec import ModelSpec, Role, WeightKey, weight_offset, weight_shapes
from jitmk.program.chunks import chunk_limit
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
    """A constant fp32 vector (a norm's weight, a bias) in the constant arena.

    Attributes:
        name: for example "layers.0.attention_norm".
        keys: the tensors that it is made of, each flattened.
        join: how they are put together.
        values: how many there are.
        addend: what is added to every stored value when it is loaded (`weight_offset`).
        offset: first element in the constant arena.
    """

    name: str
    keys: tuple[WeightKey, ...]
    join: Join
    values: int
    addend: float
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
    planner = _Planner(spec)
    if not spec.tied_embeddings:
        planner.matrix("embedding", (Role.EMBEDDING,), packed=False)
    if spec.learned_positions:
        planner.matrix("position_embedding", (Role.POSITION_EMBEDDING,), packed=False)
    for layer in range(spec.num_layers):
        planner.norms(Role.ATTENTION_NORM, Role.MLP_NORM, layer=layer)
        planner.matrix("qkv", (Role.Q, Role.K, Role.V), layer)
        planner.matrix("o_proj", (Role.O,), layer)
        if spec.gated:
            planner.matrix("gate_up", (Role.GATE, Role.UP), layer, Join.INTERLEAVE)
        else:
            planner.matrix("up", (Role.UP,), layer)
        planner.matrix("down", (Role.DOWN,), layer)
        planner.vector("qkv_bias", (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS), layer)
        planner.vector("q_norm", (Role.Q_NORM,), layer)
        planner.vector("k_norm", (Role.K_NORM,), layer)
        planner.vector("o_proj_bias", (Role.O_BIAS,), layer)
        if spec.gated:
            planner.vector("gate_up_bias", (Role.GATE_BIAS, Role.UP_BIAS), layer, Join.INTERLEAVE)
        else:
            planner.vector("up_bias", (Role.UP_BIAS,), layer)
        planner.vector("down_bias", (Role.DOWN_BIAS,), layer)
        planner.norms(Role.ATTENTION_POST_NORM, Role.MLP_POST_NORM, layer=layer)
    planner.norms(Role.FINAL_NORM)
    planner.matrix("lm_head", (Role.EMBEDDING if spec.tied_embeddings else Role.LM_HEAD,))
    return planner.plan()


class _Planner:
    """Puts matrices and vectors one behind the other."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._shapes = weight_shapes(spec)
        self._chunk_limit = chunk_limit(spec)
        self._matrices: dict[str, Matrix] = {}
        self._vectors: dict[str, Vector] = {}
        self._at_byte = self._at_value = 0

    def matrix(
        self,
        name: str,
        roles: tuple[Role, ...],
        layer: int | None = None,
        join: Join = Join.STACK,
        *,
        packed: bool = True,
    ) -> None:
        keys, name = tuple(WeightKey(role, layer) for role in roles), _full(name, layer)
        rows, columns = sum(self._shapes[key][0] for key in keys), self._shapes[keys[0]][1]
        layout = MatrixLayout(rows, columns, self._chunk_limit)
        matrix = self._matrices[name] = Matrix(name, keys, join, layout, packed, self._at_byte)
        self._at_byte += ceil_div(matrix.nbytes, GRAIN_BYTES) * GRAIN_BYTES

    def vector(self, name: str, roles: tuple[Role, ...], layer: int | None = None, join: Join = Join.STACK) -> None:
        """A vector of tensors that the model has either all or none of."""
        keys, name = tuple(WeightKey(role, layer) for role in roles), _full(name, layer)
        if keys[0] not in self._shapes:
            return
        values = sum(math.prod(self._shapes[key]) for key in keys)
        addend = weight_offset(self._spec, roles[0])
        vector = self._vectors[name] = Vector(name, keys, join, values, addend, self._at_value)
        self._at_value += vector.padded_values

    def norms(self, *weights: Role, layer: int | None = None) -> None:
        """Weights and biases of norms over hidden_size, of those that the model has."""
        for weight in weights:
            self.vector(weight.value, (weight,), layer)
            self.vector(weight.value + "_bias", (Role(weight.value + "_bias"),), layer)

    def plan(self) -> WeightPlan:
        return WeightPlan(self._matrices, self._vectors, self._at_byte, self._at_value)


def _full(name: str, layer: int | None) -> str:
    return name if layer is None else f"layers.{layer}.{name}"
