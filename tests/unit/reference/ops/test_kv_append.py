from __future__ import annotations

import torch

from jitmk.program.configs import KvAppendConfig
from jitmk.reference.ops.kv_append import kv_append, kv_appended


def test_keys_and_values_of_the_units() -> None:
    config = KvAppendConfig(heads=3, kv_heads=2, head_dim=4)
    keys, values = torch.arange(2 * 28.0).view(2, 28), 100 + torch.arange(2 * 28.0).view(2, 28)
    appends = kv_append(config, range(1, 2), keys, values)
    assert [(token, head) for token, head, _, _ in appends] == [(0, 1), (1, 1)]
    for token, _, key, value in appends:
        assert torch.equal(key, keys[token, 16:20]), "behind three query heads and the first key head"
        assert torch.equal(value, values[token, 24:28])


def test_the_position_is_published_for_each_head() -> None:
    assert torch.equal(kv_appended(range(3), [7, 9])["output"], torch.tensor([[7.0] * 3, [9.0] * 3]))
