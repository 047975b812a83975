"""NORM, for units of a group, and the norms of prologues."""

from __future__ import annotations

import torch

from jitmk.model.spec import NormKind
from jitmk.program.configs import NormConfig
from jitmk.reference.ops.rounding import to_bf16, unit_values


def normalise(
    kind: NormKind,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    sums: torch.dtype = torch.float32,
) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) + bias over the last dimension; LAYER subtracts the mean from x first.

    Args:
        kind: RMS (arXiv:1910.07467) or LAYER (arXiv:1607.06450).
        x: [..., n].
        weight, bias: broadcast to [..., n].
        sums: the type in which values are added.

    Returns:
        [..., n] in the type `sums`, not rounded.
    """
    x = x.to(sums)
    if kind is NormKind.LAYER:
        x = x - x.mean(-1, keepdim=True)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return y if bias is None else y + bias


def norm(
    config: NormConfig,
    units: range,
    first: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    sums: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """The norms of some groups.

    Args:
        config: shapes and kind.
        units: groups.
        first: the value of x with which group 0 begins.
        x: [tokens, values], bf16 values.
        weight, bias: [group] if they are shared, else [groups * group].
        sums: the type in which values are added.

    Returns:
        "output": [tokens, values of the groups], bf16 values.
    """
    groups = unit_values(units, config.groups, 1)
    values = x[:, first : first + config.groups * config.group].view(len(x), config.groups, config.group)

    def of_groups(constant: torch.Tensor) -> torch.Tensor:
        return constant if config.shared else constant.view(config.groups, config.group)[groups]

    shift = None if bias is None else of_groups(bias)
    normed = normalise(config.kind, values[:, groups], of_groups(weight), shift, config.eps, sums)
    return {"output": to_bf16(normed.float()).flatten(1)}
