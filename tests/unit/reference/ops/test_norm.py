from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from jitmk.model.spec import NormKind
from jitmk.program.configs import NormConfig
from jitmk.reference.ops.norm import norm, normalise
from jitmk.reference.ops.rounding import to_bf16

EPS = 1e-3


def test_kinds_are_those_of_torch() -> None:
    x, weight, bias = torch.randn(5, 48) + 3, torch.randn(48), torch.randn(48)
    rms = functional.rms_norm(x, (48,), weight, EPS)
    assert torch.allclose(normalise(NormKind.RMS, x, weight, None, EPS), rms, rtol=1e-5, atol=1e-6)
    layer = functional.layer_norm(x, (48,), weight, bias, EPS)
    assert torch.allclose(normalise(NormKind.LAYER, x, weight, bias, EPS), layer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", NormKind)
def test_groups_lie_one_behind_the_other(kind: NormKind, shared: bool) -> None:
    groups, group, first = 5, 16, 32
    x = to_bf16(torch.randn(2, first + groups * group + 7))
    weight, bias = (torch.randn(group if shared else groups * group) for _ in range(2))
    config = NormConfig(kind, groups, group, EPS, True, shared, 1)
    out = norm(config, range(groups), first, x, weight, bias)["output"]
    for g in range(groups):
        mine = slice(0, group) if shared else slice(g * group, (g + 1) * group)
        part = x[:, first + g * group : first + (g + 1) * group]
        expected = to_bf16(normalise(kind, part, weight[mine], bias[mine], EPS))
        assert torch.equal(out[:, g * group : (g + 1) * group], expected)
        assert torch.equal(norm(config, range(g, g + 1), first, x, weight, bias)["output"], expected)


def test_a_unit_reads_its_group_only() -> None:
    x = to_bf16(torch.randn(1, 64))
    config = NormConfig(NormKind.RMS, 4, 16, EPS, False, True, 1)
    clean = norm(config, range(1, 4, 2), 0, x, torch.ones(16))["output"]
    x[:, :16] = x[:, 32:48] = torch.nan
    assert torch.equal(norm(config, range(1, 4, 2), 0, x, torch.ones(16))["output"], clean)
