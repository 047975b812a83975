from __future__ import annotations

import pytest
import torch

from jitmk.engine import attend as module
from jitmk.engine.attend import attend

HEADS, KV_HEADS, DIM, SCALE = 6, 2, 16, 0.3


def tensors(count: int, total: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(total)
    shapes = ((HEADS, count, DIM), (KV_HEADS, total, DIM), (KV_HEADS, total, DIM))
    queries, keys, values = (torch.randn(shape, generator=generator) for shape in shapes)
    return queries, keys, values


def plainly(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, soft_cap: float | None
) -> torch.Tensor:
    """Position by position, in fp64."""
    count, total = queries.shape[1], keys.shape[1]
    out = torch.zeros((count, HEADS, DIM), dtype=torch.float64)
    for i in range(count):
        last = total - count + i + 1
        first = 0 if window is None else max(0, last - window)
        for head in range(HEADS):
            kv = head * KV_HEADS // HEADS
            scores = keys[kv, first:last].double() @ queries[head, i].double() * SCALE
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            out[i, head] = scores.softmax(0) @ values[kv, first:last].double()
    return out.flatten(1)


@pytest.mark.parametrize("soft_cap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 4, 11, 12, 100])
@pytest.mark.parametrize(("count", "total"), [(1, 1), (1, 12), (12, 12), (5, 12), (11, 12)])
def test_every_query_sees_what_it_may(
    count: int, total: int, window: int | None, soft_cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, keys, values = tensors(count, total)
    expected = plainly(queries, keys, values, window, soft_cap)
    for together in (512, 3):
        monkeypatch.setattr(module, "_MASKED_QUERIES", together)
        actual = attend(queries, keys, values, scale=SCALE, window=window, soft_cap=soft_cap)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(module, "_SCORE_BYTES", 1)  # one query at a time
    actual = attend(queries, keys, values, scale=SCALE, window=window, soft_cap=soft_cap)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("count", "total"), [(1, 1), (1, 12), (12, 12), (5, 12)])
def test_the_call_that_a_gpu_gets(count: int, total: int) -> None:
    queries, keys, values = tensors(count, total)
    attended = module._causal_on_gpu(queries, keys, values, SCALE)
    expected = plainly(queries, keys, values, None, None)
    torch.testing.assert_close(attended.transpose(0, 1).flatten(1).double(), expected, rtol=1e-5, atol=1e-6)
