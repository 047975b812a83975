"""Attention of many tokens at once, in plain torch: causal, over windows, with soft-capped scores.

Where nothing but causality limits what a token sees, one call of torch's fused attention does it all, without a mask.
Otherwise queries go a slice at a time, each with the keys that it can see and an explicit mask of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

_MASKED_QUERIES = 512
"""Queries that attend together where there is a mask; bounds the memory of the mask."""
_SCORE_BYTES = 128 << 20
"""Memory for scores where they are capped: they are then kept for all heads, in fp32."""


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """What the last tokens of a sequence gather from it.

    Args:
        queries: [heads, n, head_dim], of the last n of `total` positions.
        keys, values: [kv_heads, total, head_dim], of the same type; groups of query heads share one of them.
        scale: what scores are multiplied with.
        window: a query sees the last `window` positions, its own included; None: all.
        soft_cap: scaled scores s become cap * tanh(s / cap).

    Returns:
        [n, heads * head_dim], of that type; often a view.
    """
    count, total = queries.shape[1], keys.shape[1]
    if window is not None and window >= total:
        window = None
    if soft_cap is None and window is None:
        if count in (1, total) or queries.device.type == "cuda":
            return _by_token(_causal(queries, keys, values, scale))
    elif count == 1 and soft_cap is None:
        assert window is not None
        return _by_token(_causal(queries, keys[:, total - window :], values[:, total - window :], scale))
    slices = []
    step = _MASKED_QUERIES
    if soft_cap is not None:
        widest = total if window is None else min(total, window + step)
        step = max(1, min(step, _SCORE_BYTES // (4 * queries.shape[0] * widest)))
    for begin in range(0, count, step):
        end = min(count, begin + step)
        at = total - count + begin  # the position of the first of these queries
        first = 0 if window is None else max(0, at - window + 1)
        last = total - count + end
        mask = _visible(range(at, last), range(first, last), window, queries.device)
        seen = keys[:, first:last], values[:, first:last]
        slices.append(_by_token(_masked(queries[:, begin:end], *seen, mask, scale, soft_cap)))
    return torch.cat(slices)


def _causal(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of [heads, n, d]: of all positions, or of one that sees all keys; on a GPU, of the last n."""
    if queries.device.type == "cuda":
        return _causal_on_gpu(queries, keys, values, scale)
    grouped, keys, values = _grouped(queries, keys, values)
    causal = queries.shape[1] > 1
    return F.scaled_dot_product_attention(grouped, keys, values, is_causal=causal, scale=scale).flatten(0, 1)


def _causal_on_gpu(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of [heads, n, d] where query i of n sees all keys but the last n - 1 - i, in one fused kernel.

    Heads are a dimension of their own, as the fused kernels want them that know that groups of heads share keys.
    """
    heads, count, _ = queries.shape
    total = keys.shape[1]
    return F.scaled_dot_product_attention(
        queries[None],
        keys[None],
        values[None],
        attn_mask=causal_lower_right(count, total) if 1 < count < total else None,
        is_causal=1 < count == total,
        scale=scale,
        enable_gqa=heads != keys.shape[0],
    )[0]


def _masked(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    soft_cap: float | None,
) -> torch.Tensor:
    """Attention of [heads, n, d] to the keys that `mask` [n, keys] shows."""
    grouped, keys, values = _grouped(queries, keys, values)
    if soft_cap is None:
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale).flatten(0, 1)
    scores = (grouped @ keys.transpose(-1, -2)).float()
    scores = torch.tanh_(scores.mul_(scale / soft_cap)).mul_(soft_cap).masked_fill_(~mask, -torch.inf)
    return (scores.softmax(-1).to(values.dtype) @ values).flatten(0, 1)


def _grouped(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Everything as [kv_heads, group, positions, head_dim]; keys and values are not copied for each query head."""
    group = queries.shape[0] // keys.shape[0]
    shared_keys, shared_values = (x[:, None].expand(-1, group, -1, -1) for x in (keys, values))
    return queries.view(-1, group, *queries.shape[1:]), shared_keys, shared_values


def _visible(queries: range, keys: range, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys each query sees, by their positions: bool [queries, keys]."""
    query = torch.arange(queries.start, queries.stop, device=device)[:, None]
    key = torch.arange(keys.start, keys.stop, device=device)
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


def _by_token(attended: torch.Tensor) -> torch.Tensor:
    """[heads, n, d] -> [n, heads * d]."""
    return attended.transpose(0, 1).flatten(1)
