from __future__ import annotations

import torch

from jitmk.reference.cache import PlainKvCache
from tests.support.tiny import tiny_spec


def test_grows_and_keeps_what_it_holds() -> None:
    cache = PlainKvCache(tiny_spec())
    keys, values = torch.randn(2, 2, 100, 64).bfloat16().float()
    cache.write(1, 0, keys[:, :60], values[:, :60])
    before = cache.capacity
    for position in range(60, 100):
        for head in range(2):
            cache.write_head(1, head, position, keys[head, position], values[head, position])
    assert cache.capacity > before
    read_keys, read_values = cache.read(1, 100)
    assert torch.equal(read_keys, keys) and torch.equal(read_values, values)
    one_keys, one_values = cache.read_head(1, 1, 50, 70)
    assert torch.equal(one_keys, keys[1, 50:70]) and torch.equal(one_values, values[1, 50:70])
    assert (cache.read(0, 100)[0] == 0).all(), "layers are apart"


def test_rounds_to_bf16_and_clears() -> None:
    cache = PlainKvCache(tiny_spec())
    keys = torch.randn(2, 1, 64)
    cache.write(0, 5, keys, keys)
    assert torch.equal(cache.read_head(0, 1, 5, 6)[1], keys[1].bfloat16().float())
    cache.clear()
    assert cache.capacity == 0
