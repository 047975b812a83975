"""What every model is held to, whichever family read it, and how its context is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jitmk.errors import ConfigError, ContextLengthError, UnsupportedModelError
from jitmk.model.families.base import LoadedFamily, TensorRef
from jitmk.model.spec import ModelSpec, NormKind, Role, RopeKind, WeightKey

HEAD_DIMS = (64, 80, 96, 128, 256)
"""Sizes of an attention head that jitmk has tiles for."""

SIZE_MULTIPLE = 16
"""Hidden and intermediate sizes are multiples of this: the depth of one tensor-core step (mma.m16n8k16)."""


def check_spec(spec: ModelSpec) -> None:
    """Refuses a spec that contradicts itself, or that jitmk's programs and kernels cannot express.

    Raises:
        UnsupportedModelError: a size is not supported; the message says which are.
        ConfigError: fields contradict each other.
    """
    _check_sizes(spec)
    _check_layers(spec)
    if spec.norm.bias and spec.norm.kind is not NormKind.LAYER:
        raise ConfigError(f"a norm of kind {spec.norm.kind.value!r} has no bias: only layer norms have")
    if spec.parallel and not (spec.pre_norm and not spec.post_norm):
        raise UnsupportedModelError(
            f"parallel blocks with pre_norm={spec.pre_norm}, post_norm={spec.post_norm} are not supported: "
            "jitmk runs those that share one norm in front of them"
        )


def _check_sizes(spec: ModelSpec) -> None:
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
    for rope in spec.ropes:
        if rope.rotary_dim % 2 or not 0 < rope.rotary_dim <= spec.head_dim:
            raise UnsupportedModelError(
                f"{rope.rotary_dim} rotated dimensions of a head are not supported: jitmk rotates an even number of "
                f"at most head_dim={spec.head_dim}"
            )


def _check_layers(spec: ModelSpec) -> None:
    if len(spec.layers) != spec.num_layers:
        raise ConfigError(f"num_hidden_layers={spec.num_layers}, but {len(spec.layers)} layers are described")
    for index, layer in enumerate(spec.layers):
        if layer.rope is not None and not 0 <= layer.rope < len(spec.ropes):
            raise ConfigError(f"layer {index} rotates by rope {layer.rope} of {len(spec.ropes)}")
        if layer.window is not None and layer.window < 1:
            raise ConfigError(f"layer {index} has a window of {layer.window} positions: it must have 1 or more")


def limit_context(family: LoadedFamily, max_seq_len: int | None) -> LoadedFamily:
    """The model with its context cut (or, for dynamic rope, extended) to `max_seq_len` tokens.

    The limit is config.json's max_position_embeddings. Dynamic NTK rope is the one kind whose config states the context
    before its extension, so there the limit is `factor` times as much. A window that the context cannot fill is none.

    Raises:
        ContextLengthError: `max_seq_len` is not positive, or past the limit.
    """
    spec = family.spec
    if max_seq_len is not None:
        _check_length(spec, max_seq_len)
        spec = replace(spec, max_positions=max_seq_len)
    layers = tuple(
        replace(layer, window=None) if layer.window is not None and layer.window >= spec.max_positions else layer
        for layer in spec.layers
    )
    return replace(family, spec=replace(spec, layers=layers), tensors=_cut_positions(family, spec))


def _check_length(spec: ModelSpec, max_seq_len: int) -> None:
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


def _cut_positions(family: LoadedFamily, spec: ModelSpec) -> Mapping[WeightKey, TensorRef]:
    """Of learned positions, only those of the context are read."""
    key = WeightKey(Role.POSITION_EMBEDDING)
    if not spec.learned_positions or spec.max_positions == family.spec.max_positions:
        return family.tensors
    ref = family.tensors[key]
    begin = ref.rows[0] if ref.rows else 0
    cut = replace(ref, rows=(begin, begin + spec.max_positions), stored_rows=begin + family.spec.max_positions)
    return {**family.tensors, key: cut}
