"""ATTENTION: one new token per sequence over its cache, for units of (head group, split)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jitmk.program.configs import LSE_WORDS, AttentionConfig
from jitmk.program.kv_layout import TILE_POSITIONS
from jitmk.reference.ops.norm import normalise
from jitmk.reference.ops.rope import rotate
from jitmk.reference.ops.rounding import soft_capped, to_bf16

ReadKv = Callable[[int, int, int], tuple[torch.Tensor, torch.Tensor]]
"""(key/value head, begin, end) -> keys and values of old positions, each [end - begin, head_dim], bf16 values."""


@dataclass(frozen=True)
class NewToken:
    """One sequence's new token, as attention sees it.

    Attributes:
        heads: [heads, head_dim], queries and keys, laid out as qkv, bf16 values; not yet normed or rotated, if that
            is attention's task.
        values: [heads, head_dim], of which the values are those behind queries and keys, bf16 values.
        cos, sin: fp32 [rotary_dim / 2], of the token's position; empty where attention does not rotate.
        position: of the token: how many positions are in the cache.
        read_kv: reads the sequence's cache of this layer.
        q_norm, k_norm: fp32 [head_dim], weights of the norms of queries and keys, where attention norms them.
    """

    heads: torch.Tensor
    values: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    position: int
    read_kv: ReadKv
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


@dataclass(frozen=True)
class Softmax:
    """Attention of some heads over some positions, not yet divided by the normaliser.

    Attributes:
        sums: [heads, head_dim], sum of probability * value, probabilities relative to 2 ** maximum.
        maximum: [heads], the largest score in units of log2; -inf where there are no positions.
        normaliser: [heads], sum of the probabilities.
    """

    sums: torch.Tensor
    maximum: torch.Tensor
    normaliser: torch.Tensor


def old_positions(position: int, split: int, splits: int, window: int = 0) -> range:
    """The cached positions that a split covers: whole tiles, as even as possible, that of the new token among them.

    Args:
        position: of the new token.
        split, splits: which part of how many.
        window: positions that are attended to, the new token's included; 0 for all.
    """
    first = max(0, position + 1 - window) if window else 0
    first_tile = first // TILE_POSITIONS
    tiles = position // TILE_POSITIONS + 1 - first_tile
    bounds = [(first_tile + tiles * part // splits) * TILE_POSITIONS for part in (split, split + 1)]
    begin = max(first, bounds[0])
    return range(begin, max(begin, min(position, bounds[1])))


def prepared(
    config: AttentionConfig, heads: torch.Tensor, norm: torch.Tensor | None, token: NewToken, sums: torch.dtype
) -> torch.Tensor:
    """Queries or keys, normed and rotated as far as that is attention's task: [heads, head_dim], bf16 values."""
    if norm is not None:
        assert config.qk_norm is not None
        heads = normalise(config.qk_norm, heads, norm, None, config.qk_norm_eps, sums).float()
    return rotate(heads, token.cos, token.sin)


def new_key_value(
    config: AttentionConfig, kv_head: int, token: NewToken, sums: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a token appends to the cache of one head: (normed and rotated key, value), each [head_dim], bf16 values."""
    key = config.heads + kv_head
    return prepared(config, token.heads[key : key + 1], token.k_norm, token, sums)[0], token.values[
        key + config.kv_heads
    ]


def attention(
    config: AttentionConfig,
    units: range,
    splits: int,
    tokens: Sequence[NewToken],
    *,
    window: int = 0,
    sums: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Attention of some units.

    Args:
        config: shapes, scale and cap of the scores.
        units: head group * splits + split.
        splits: parts of the context.
        tokens: the new token of each sequence.
        window: positions that are attended to, the new token's included; 0 for all.
        sums: the type in which products are added.

    Returns:
        Unit after unit and in it head after head: "output", [tokens, heads * head_dim], what comes out of the unit's
        split, bf16 values, and "lse_out", fp32 [tokens, heads * LSE_WORDS], the logarithm of its normaliser in units of
        log2, LSE_WORDS times: zeros and -inf where the split has no positions.
    """
    units_of = [[_unit(config, unit, splits, window, token, sums) for unit in units] for token in tokens]
    outputs, logarithms = (
        torch.stack([torch.cat([unit[part] for unit in of_token]) for of_token in units_of]) for part in range(2)
    )
    return {"output": outputs, "lse_out": logarithms.repeat_interleave(LSE_WORDS, dim=1)}


def _unit(
    config: AttentionConfig, unit: int, splits: int, window: int, token: NewToken, sums: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    group, split = divmod(unit, splits)
    heads, kv_head = config.group_heads(group), config.group_kv_head(group)
    queries = prepared(config, token.heads[heads.start : heads.stop], token.q_norm, token, sums)
    old = old_positions(token.position, split, splits, window)
    result = attend(config, queries, *token.read_kv(kv_head, old.start, old.stop), sums)
    if split == splits - 1:
        result = add_token(config, result, queries, *new_key_value(config, kv_head, token, sums), sums)
    normaliser = result.normaliser[:, None]
    output = torch.where(normaliser == 0, 0.0, result.sums / normaliser)
    return to_bf16(output).flatten(), result.maximum + result.normaliser.log2()


def attend(
    config: AttentionConfig, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sums: torch.dtype
) -> Softmax:
    """Attention over old positions; probabilities are rounded to bf16 where they meet the values.

    Args:
        config: scale and cap of the scores.
        queries: [heads, head_dim]; keys, values: [positions, head_dim]; bf16 values.
    """
    if len(keys) == 0:
        empty = queries.new_zeros(len(queries))
        return Softmax(torch.zeros_like(queries), empty - math.inf, empty)
    scores = _scores(config, queries.to(sums) @ keys.to(sums).T)
    maximum = scores.amax(1).float()
    probabilities = torch.exp2(scores - maximum[:, None]).float()
    total = to_bf16(probabilities).to(sums) @ values.to(sums)
    return Softmax(total.float(), maximum, probabilities.sum(1, dtype=sums).float())


def add_token(
    config: AttentionConfig,
    old: Softmax,
    queries: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sums: torch.dtype,
) -> Softmax:
    """Adds one position in fp32.

    Args:
        key, value: [head_dim], bf16 values.
    """
    score = _scores(config, queries.to(sums) @ key.to(sums)).float()
    maximum = torch.maximum(old.maximum, score)
    keep, weight = torch.exp2(old.maximum - maximum), torch.exp2(score - maximum)
    return Softmax(old.sums * keep[:, None] + weight[:, None] * value, maximum, old.normaliser * keep + weight)


def _scores(config: AttentionConfig, products: torch.Tensor) -> torch.Tensor:
    """Scaled and capped query-key products, in units of log2."""
    return soft_capped(products * config.scale, config.soft_cap) * math.log2(math.e)
