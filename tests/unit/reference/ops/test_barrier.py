from __future__ import annotations

import torch

from jitmk.reference.ops.barrier import barrier


def test_a_word_for_each_unit() -> None:
    assert torch.equal(barrier(range(3, 5), 2)["output"], torch.zeros(2, 2))
