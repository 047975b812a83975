"""KV_APPEND: what attention's prologue appends to the cache, by itself, for units of a key/value head."""

from __future__ import annotations

import torch

from jitmk.program.configs import KvAppendConfig

Append = tuple[int, int, torch.Tensor, torch.Tensor]
"""(token, key/value head, key, value): what one position of a cache gets, key and value [head_dim], bf16 values."""


def kv_append(config: KvAppendConfig, units: range, keys: torch.Tensor, values: torch.Tensor) -> list[Append]:
    """What is appended to the cache of some heads, of every token.

    Args:
        config: shapes.
        units: key/value heads.
        keys, values: [tokens, values], both laid out as qkv, bf16 values.
    """
    heads = [x.view(len(x), -1, config.head_dim) for x in (keys, values)]
    first_value = config.heads + config.kv_heads
    return [
        (token, head, heads[0][token, config.heads + head], heads[1][token, first_value + head])
        for token in range(len(keys))
        for head in units
    ]


def kv_appended(units: range, positions: list[int]) -> dict[str, torch.Tensor]:
    """What is published of that: "output", fp32 [tokens, units], the token's position for each head."""
    return {"output": torch.tensor(positions, dtype=torch.float32)[:, None].repeat(1, len(units))}
