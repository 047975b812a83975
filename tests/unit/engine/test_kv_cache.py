from __future__ import annotations

import pytest
import torch

from jitmk.engine.kv_cache import KvCache, kv_cache_bytes
from tests.support.tiny import tiny_spec


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("positions", [1, 16, 17, 100])
def test_its_size_is_what_the_check_counts(head_dim: int, positions: int) -> None:
    spec = tiny_spec(head_dim=head_dim)
    cache = KvCache(spec, positions, torch.device("cpu"))
    assert cache.tensor.numel() * 2 == kv_cache_bytes(spec, positions)
    assert cache.tensor.shape[:3] == (spec.num_layers, 1, spec.num_kv_heads)
    assert not cache.tensor.any()


def test_layers_keep_apart_and_pieces_add_up() -> None:
    spec = tiny_spec(num_layers=3)
    cache = KvCache(spec, 50, torch.device("cpu"))
    keys, values = torch.randn(2, 3, spec.num_kv_heads, 41, spec.head_dim).to(torch.bfloat16)
    for layer in range(3):
        for begin, end in ((0, 5), (5, 20), (20, 41)):
            cache.write(layer, begin, keys[layer, :, begin:end], values[layer, :, begin:end])
    for layer in range(3):
        read = cache.read(layer, 37)
        assert torch.equal(read[0], keys[layer, :, :37]) and torch.equal(read[1], values[layer, :, :37])
    cache.clear()
    assert not cache.tensor.any()
