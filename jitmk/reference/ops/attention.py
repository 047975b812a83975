"""ATTENTION: one new token per sequence over its cache, for units of (head group, split)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jitmk.program.kv_layout import TILE_POSITIONS
from jitmk.program.packing import ceil_div
from jitmk.program.program import AttentionConfig
from jitmk.reference.ops.rounding import to_bf16

ReadKv = Callable[[int, int, int], tuple[torch.Tensor, torch.Tensor]]
"""(key/value head, begin, end) -> keys and values of old positions, each [end - begin, head_dim], bf16 values."""


@dataclass(frozen=True)
class NewToken:
    """One sequence's new token, as attention sees it.

    Attributes:
        qkv: [qkv_rows], queries, keys and values, bf16 values, not yet rotated.
        cos, sin: fp32 [rotary_dim / 2], of the token's position.
        position: of the token: how many positions are in the cache.
        read_kv: reads the sequence's cache of this layer.
    """

    qkv: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    position: int
    read_kv: ReadKv


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


def old_positions(position: int, split: int, splits: int) -> range:
    """The cached positions that a split covers: whole tiles, as even as possible, without the new token's."""
    tiles = ceil_div(position, TILE_POSITIONS)
    first, last = tiles * split // splits, tiles * (split + 1) // splits
    return range(first * TILE_POSITIONS, max(first * TILE_POSITIONS, min(position, last * TILE_POSITIONS)))


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of pairs (i, i + rotary_dim / 2), in fp32, rounded to bf16.

    Args:
        heads: [heads, head_dim], bf16 values.
        cos, sin: fp32 [rotary_dim / 2], of the token's position.
    """
    half = len(cos)
    low, high, rest = heads[:, :half], heads[:, half : 2 * half], heads[:, 2 * half :]
    return to_bf16(torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=1))


def new_key_value(config: AttentionConfig, kv_head: int, token: NewToken) -> tuple[torch.Tensor, torch.Tensor]:
    """What a token appends to the cache of one head: (rotated key, value), each [head_dim], bf16 values."""
    heads = token.qkv.view(-1, config.head_dim)
    key = config.heads + kv_head
    return rotate(heads[key : key + 1], token.cos, token.sin)[0], heads[key + config.kv_heads]


def attention(
    config: AttentionConfig,
    units: range,
    splits: int,
    tokens: Sequence[NewToken],
    *,
    sums: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Attention of some units.

    Args:
        config: shapes.
        units: head group * splits + split.
        splits: parts of the context.
        tokens: the new token of each sequence.
        sums: the type in which products are added.

    Returns:
        "output": [tokens, values], unit after unit and in it head after head. With `partial`, head_dim sums, the
        maximum (in units of log2) and the normaliser of each; else the head's output, bf16 values.
    """
    rows = [torch.cat([_unit(config, unit, splits, token, sums) for unit in units]) for token in tokens]
    return {"output": torch.stack(rows)}


def _unit(config: AttentionConfig, unit: int, splits: int, token: NewToken, sums: torch.dtype) -> torch.Tensor:
    group, split = divmod(unit, splits)
    heads, kv_head = config.group_heads(group), config.group_kv_head(group)
    queries = rotate(token.qkv.view(-1, config.head_dim)[heads.start : heads.stop], token.cos, token.sin)
    old = old_positions(token.position, split, splits)
    result = attend(queries, *token.read_kv(kv_head, old.start, old.stop), config.scale, sums)
    if split == splits - 1:
        result = add_token(result, queries, *new_key_value(config, kv_head, token), config.scale, sums)
    if config.partial:
        return torch.cat((result.sums, result.maximum[:, None], result.normaliser[:, None]), dim=1).flatten()
    return to_bf16(result.sums / result.normaliser[:, None]).flatten()


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, sums: torch.dtype) -> Softmax:
    """Attention over old positions; probabilities are rounded to bf16 where they meet the values.

    Args:
        queries: [heads, head_dim]; keys, values: [positions, head_dim]; bf16 values.
        scale: of the scores.
    """
    if len(keys) == 0:
        empty = queries.new_zeros(len(queries))
        return Softmax(torch.zeros_like(queries), empty - math.inf, empty)
    scores = (queries.to(sums) @ keys.to(sums).T) * _log2_scale(scale)
    maximum = scores.amax(1).float()
    probabilities = torch.exp2(scores - maximum[:, None]).float()
    total = to_bf16(probabilities).to(sums) @ values.to(sums)
    return Softmax(total.float(), maximum, probabilities.sum(1, dtype=sums).float())


def add_token(
    old: Softmax, queries: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, sums: torch.dtype
) -> Softmax:
    """Adds one position in fp32.

    Args:
        key, value: [head_dim], bf16 values.
    """
    score = ((queries.to(sums) @ key.to(sums)) * _log2_scale(scale)).float()
    maximum = torch.maximum(old.maximum, score)
    keep, weight = torch.exp2(old.maximum - maximum), torch.exp2(score - maximum)
    return Softmax(old.sums * keep[:, None] + weight[:, None] * value, maximum, old.normaliser * keep + weight)


def _log2_scale(scale: float) -> float:
    """The factor of a score in units of log2."""
    return scale * math.log2(math.e)
