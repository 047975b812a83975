from __future__ import annotations

import torch

from jitmk.reference.ops.merge import merged_splits
from jitmk.reference.ops.rounding import to_bf16


def test_parts_of_a_softmax_make_the_whole() -> None:
    scores, values = torch.randn(2, 5, 30), to_bf16(torch.randn(30, 8))
    whole = scores.softmax(-1) @ values
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    outputs = torch.stack([scores[..., part].softmax(-1) @ values[part] for part in parts], dim=1)
    lse = torch.stack([scores[..., part].logsumexp(-1) for part in parts], dim=1) / torch.log(torch.tensor(2.0))
    merged = merged_splits(outputs.flatten(1), lse.flatten(1), 5)
    assert merged.shape == (2, 5 * 8) and torch.equal(merged, to_bf16(merged))
    assert torch.allclose(merged, whole.flatten(1), rtol=2**-8, atol=1e-6)


def test_one_part_is_itself_and_an_empty_one_is_nothing() -> None:
    outputs, lse = to_bf16(torch.randn(1, 2, 24)), torch.randn(1, 2, 3)
    outputs[:, 0], lse[:, 0] = 0, -torch.inf
    assert torch.equal(merged_splits(outputs.flatten(1), lse.flatten(1), 3), outputs[:, 1])
    assert torch.equal(merged_splits(outputs[:, 1], lse[:, 1], 3), outputs[:, 1])
