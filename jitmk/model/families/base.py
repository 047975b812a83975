"""What an architecture family is: a reader from config.json to a ModelSpec and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jitmk.errors import ConfigError, ContextLengthError, UnsupportedModelError
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.spec import ModelSpec, RopeKind, WeightKey

HEAD_DIMS = (64, 80, 96, 128, 256)
"""Sizes of an attention head that jitmk has tiles for."""

SIZE_MULTIPLE = 16
"""Hidden and intermediate sizes are multiples of this: the depth of one tensor-core step (mma.m16n8k16)."""


@dataclass(frozen=True)
class TensorRef:
    """Where a logical tensor is found in a checkpoint.

    Attributes:
        name: name of the stored tensor.
        rows: first and one past the last row of the logical tensor in the stored one, for tensors that hold several
            (a fused QKV projection); None for all of it. Counted after `transpose`.
        transpose: whether the stored matrix is [in, out] (GPT-2's Conv1D) where jitmk wants [out, in].
    """

    name: str
    rows: tuple[int, int] | None = None
    transpose: bool = False


@dataclass(frozen=True)
class LoadedFamily:
    """A config.json, understood.

    Attributes:
        spec: what the model computes.
        tensors: where each of `weight_shapes(spec)` is stored.
        dtype: what config.json says of the weights' type, or None; the files decide.
        ignorable: regular expressions (full match) of stored tensors that need not be read.
    """

    spec: ModelSpec
    tensors: Mapping[WeightKey, TensorRef]
    dtype: str | None = None
    ignorable: tuple[str, ...] = ()


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


def check_sizes(spec: ModelSpec) -> None:
    """Refuses a spec that jitmk's programs and kernels cannot express.

    Raises:
        UnsupportedModelError: a size is not supported; the message says which are.
        ConfigError: sizes contradict each other.
    """
    for name, size in (("hidden_size", spec.hidden_size), ("intermediate_size", spec.intermediate_size)):
        if size % SIZE_MULTIPLE:
            raise UnsupportedModelError(f"{name}={size} is not supported: it must be a multiple of {SIZE_MULTIPLE}")
    if spec.head_dim not in HEAD_DIMS:
        raise UnsupportedModelError(
            f"head_dim={spec.head_dim} is not supported: jitmk runs {', '.join(map(str, HEAD_DIMS))}"
        )
    if spec.num_heads % spec.num_kv_heads:
        raise ConfigError(
            f"num_attention_heads={spec.num_heads} is not a multiple of num_key_value_heads={spec.num_kv_heads}: "
            "query heads must share key/value heads evenly"
        )


def limit_positions(spec: ModelSpec, max_seq_len: int | None) -> ModelSpec:
    """The spec with its context cut (or, for dynamic rope, extended) to `max_seq_len` tokens.

    The limit is config.json's max_position_embeddings. Dynamic NTK rope is the one kind whose config states the context
    before its extension, so there the limit is `factor` times as much.

    Raises:
        ContextLengthError: `max_seq_len` is not positive, or past the limit.
    """
    if max_seq_len is None:
        return spec
    if isinstance(max_seq_len, bool) or not isinstance(max_seq_len, int) or max_seq_len < 1:
        raise ContextLengthError(f"max_seq_len={max_seq_len!r} is not a positive integer (tokens)")
    limit, reason = spec.max_positions, f"max_position_embeddings={spec.max_positions}"
    if spec.ropes and all(rope.kind is RopeKind.DYNAMIC for rope in spec.ropes):
        factor = min(rope.factor for rope in spec.ropes)
        limit = int(spec.max_positions * factor)
        reason += f" and dynamic rope with factor={factor:g}"
    if max_seq_len > limit:
        raise ContextLengthError(
            f"max_seq_len={max_seq_len} is more than the {limit} tokens that this model was made for ({reason}): "
            f"pass max_seq_len={limit} or less"
        )
    return replace(spec, max_positions=max_seq_len)
