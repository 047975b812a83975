from __future__ import annotations

import torch

from jitmk.program.configs import CopyConfig
from jitmk.reference.ops.copy import copy


def test_units_count_from_the_first_value() -> None:
    x = torch.arange(2 * 700.0).view(2, 700)
    config = CopyConfig(520, 1)
    assert torch.equal(copy(config, range(3), 100, x)["output"], x[:, 100:620])
    assert torch.equal(copy(config, range(2, 3), 100, x)["output"], x[:, 612:620])
