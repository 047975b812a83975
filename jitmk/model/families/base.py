"""What an architecture family is: a reader from config.json to a ModelSpec and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.spec import ModelSpec, WeightKey


@dataclass(frozen=True)
class InterleavedPairs:
    """A checkpoint that rotates the dimensions (2i, 2i + 1) of a head together, where jitmk rotates (i, i + d / 2).

    Queries and keys are reordered alike when they are loaded, which changes none of their dot products.

    Attributes:
        head_dim: d, all of whose dimensions are rotated.
        axis: the axis of the stored tensor that holds heads, each `head_dim` long.
    """

    head_dim: int
    axis: int = 0

    def order(self) -> list[int]:
        """For every dimension of a head, the stored one that it is."""
        return [*range(0, self.head_dim, 2), *range(1, self.head_dim, 2)]


@dataclass(frozen=True)
class TensorRef:
    """Where a logical tensor is found in a checkpoint.

    Attributes:
        name: name of the stored tensor.
        rows: first and one past the last row of the logical tensor in the stored one, for tensors that hold several
            (a fused QKV projection); None for all of it. Counted after `transpose`.
        stored_rows: rows of the stored tensor where `rows` of all that share it do not reach its end; else None.
        transpose: whether the stored matrix is [in, out] (GPT-2's Conv1D) where jitmk wants [out, in].
        row_order: in which order the dimensions of heads are stored, if not in jitmk's. Applied after `rows`.
    """

    name: str
    rows: tuple[int, int] | None = None
    stored_rows: int | None = None
    transpose: bool = False
    row_order: InterleavedPairs | None = None


@dataclass(frozen=True)
class LoadedFamily:
    """A config.json, understood.

    Attributes:
        spec: what the model computes.
        tensors: where each of `weight_shapes(spec)` is stored.
        dtype: what config.json says of the weights' type, or None; the files decide.
        ignorable: regular expressions (full match) of stored tensors that need not be read.
        optional_prefix: what the names in `tensors` may begin with and those of some checkpoints do not, because they
            were saved without a language model head.
    """

    spec: ModelSpec
    tensors: Mapping[WeightKey, TensorRef]
    dtype: str | None = None
    ignorable: tuple[str, ...] = ()
    optional_prefix: str = ""


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        model_type: config.json's `model_type`.
        architectures: the accepted entries of config.json's `architectures`; empty for any.
        read: turns a config into a LoadedFamily, and takes every key that it understands from the reader.
        harmless: keys, besides the ones that every config may have, that do not change what the model computes.
    """

    model_type: str
    architectures: tuple[str, ...]
    read: Callable[[ConfigReader], LoadedFamily]
    harmless: frozenset[str] = frozenset()
