"""Logits and sampling filters that are hard on whoever looks for a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from jitmk.reference.ops.sample_filter import Filters

Logits = Callable[[int, torch.Generator], torch.Tensor]


def _normal(scale: float, mean: float = 0.0) -> Logits:
    return lambda n, random: torch.randn(n, generator=random) * scale + mean


def _constant(value: float) -> Logits:
    return lambda n, random: torch.full((n,), value)


def _rounded(n: int, random: torch.Generator) -> torch.Tensor:
    return (torch.randn(n, generator=random) * 4).round() / 4


def _peak(n: int, random: torch.Generator) -> torch.Tensor:
    logits = torch.randn(n, generator=random)
    logits[n // 2] = 40.0
    return logits


def _neighbours(n: int, random: torch.Generator) -> torch.Tensor:
    """Floats next to each other."""
    bits = torch.tensor(3.0).view(torch.int32) - torch.arange(n, dtype=torch.int32)
    return bits.view(torch.float32)[torch.randperm(n, generator=random)]


def _some(value: float, share: float) -> Logits:
    def logits(n: int, random: torch.Generator) -> torch.Tensor:
        return torch.where(torch.rand(n, generator=random) < share, value, torch.randn(n, generator=random) * 3)

    return logits


def _extremes(n: int, random: torch.Generator) -> torch.Tensor:
    values = torch.tensor([0.0, -0.0, 3e38, -3e38, 1e-40, -1e-40, 1.0, -1.0, -math.inf, 88.0])
    return values[torch.randint(len(values), (n,), generator=random)]


def _signed_zeros(n: int, random: torch.Generator) -> torch.Tensor:
    return torch.where(torch.rand(n, generator=random) < 0.5, 0.0, -0.0)


LOGITS: Mapping[str, Logits] = {
    "flat": _normal(0.9),
    "usual": _normal(3.0, -2.0),
    "wide": _normal(100.0),
    "tiny": _normal(1e-30),
    "negative": _normal(1.0, -50.0),
    "equal": _constant(1.5),
    "minimum": _constant(-math.inf),
    "rounded": _rounded,
    "peak": _peak,
    "neighbours": _neighbours,
    "mostly -inf": _some(-math.inf, 0.9),
    "some inf": _some(math.inf, 0.02),
    "some NaN": _some(math.nan, 0.2),
    "extremes": _extremes,
    "zeros": _signed_zeros,
}
"""By name: from a number of tokens and a source of randomness to logits, fp32 [n]."""

FILTERS = (
    Filters(top_k=1),
    Filters(top_k=2),
    Filters(top_k=40),
    Filters(top_k=2**31 - 1),
    Filters(top_p=1e-9),
    Filters(top_p=0.3),
    Filters(top_p=0.9),
    Filters(top_p=1 - 1e-7),
    Filters(min_p=1e-12),
    Filters(min_p=0.05),
    Filters(min_p=1.0),
    Filters(top_k=30, top_p=0.9),
    Filters(top_k=1, top_p=0.01, min_p=1.0),
    Filters(top_k=500, top_p=0.95, min_p=0.02),
)

TIGHT_FILTERS = (
    *(Filters(top_k=k) for k in (2, 5, 12, 40)),
    *(Filters(top_p=p) for p in (0.003, 0.02, 0.1)),
)
"""For high temperatures, at which a draw falls on anything that is left."""

TEMPERATURES = (0.8, 1e-4, 5.0)
