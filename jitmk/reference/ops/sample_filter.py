"""Sampling filters, the part of SAMPLE that restricts a draw: top-k, then top-p, and min-p.

What a filter leaves is every token whose logit is no smaller than some threshold, so that equal logits share their
fate:

- top_k leaves the tokens than which fewer than top_k are larger;
- top_p leaves, of those, the tokens than which the larger ones have less than top_p of the probability;
- min_p leaves the tokens that are at least min_p times as probable as the most probable one.

Probabilities enter as integers (`weights`), made with operations that round alike everywhere: sums of integers do not
depend on the order of their terms, so every machine finds the same threshold for the same logits. `engine/sampling.py`
finds it by sorting; the device, which has the vocabulary spread over all SMs, and `allowed` here count in bins, 16
times finer with every round (`csrc_headers/jitmk/vm/sample_filter.cuh`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

WEIGHT_BITS = 31
"""The most probable token weighs 2 to the power of this."""

_LARGEST_DROP = 32.0
"""From here on (in powers of two) a token weighs nothing."""

_POWER = (1.0, -0.6931437, 0.24018015, -0.05529736, 0.0092057986, -0.00094490364)
"""2^-x on [0, 1) by powers of x, to 1e-7 of its value: a minimax polynomial that is exact at 0."""

_BIN_BITS = 4

_SIGN = 1 << 31
_SMALLEST_FINITE = 0xFF7FFFFF


@dataclass(frozen=True)
class Filters:
    """What a draw is restricted to.

    Attributes:
        top_k: 0 for no restriction. top_p: in (0, 1], 1 for none. min_p: in [0, 1], 0 for none.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def active(self) -> bool:
        """Whether there is a restriction."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


NO_FILTERS = Filters()


def drop_scale(temperature: float) -> float:
    """Powers of two in the probability for each unit of the logit; fp32 is what all machines use of it."""
    return math.log2(math.e) / temperature


def largest_drop(min_p: float) -> float:
    """How many powers of two below the most probable token min_p still leaves; fp32 is what all machines use of it."""
    return -math.log2(min_p) if min_p > 0 else math.inf


def drops(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """By how many powers of two each token is less probable than the most probable one.

    Args:
        logits: fp32 [n].
        temperature: above 0.

    Returns:
        fp32 [n], 0 or more.
    """
    largest = logits.max()
    scale = torch.tensor(drop_scale(temperature), dtype=torch.float32, device=logits.device)
    return torch.where(logits == largest, 0.0, (largest - logits) * scale)


def weights(drop: torch.Tensor) -> torch.Tensor:
    """Probabilities in units of 2^-31 of the largest one.

    Args:
        drop: fp32 [n], as of `drops`.

    Returns:
        int64 [n], 0 to 2^31: 2^(31 - drop), rounded down.
    """
    drop = drop.clamp(max=_LARGEST_DROP)
    octave = drop.to(torch.int64)
    fraction = drop - octave
    power = torch.full_like(drop, _POWER[-1])
    for coefficient in reversed(_POWER[:-1]):
        power = power * fraction + coefficient
    # From a table: pow() need not be exact.
    scale = torch.tensor([2.0 ** (WEIGHT_BITS - i) for i in range(33)], device=drop.device)
    return (power * scale[octave]).to(torch.int64)


def share_of(total: int, top_p: float) -> int:
    """What larger tokens must weigh together before top_p leaves no more: top_p of the total, rounded up."""
    return math.ceil(top_p * total)


def depths(logits: torch.Tensor) -> torch.Tensor:
    """Integers that count floats from the largest down: greater for smaller logits, equal for equal ones.

    Args:
        logits: fp32 [n], no NaN.

    Returns:
        int64 [n], 0 to 2^32 - 1.
    """
    bits = (logits + 0.0).view(torch.int32).to(torch.int64) & 0xFFFFFFFF  # with the sum, -0 is 0
    return torch.where(bits >= _SIGN, bits, _SIGN - 1 - bits)


def allowed(logits: torch.Tensor, temperature: float, filters: Filters) -> torch.Tensor:
    """The tokens that the filters leave.

    Args:
        logits: fp32 [n].
        temperature: above 0.

    Returns:
        bool [n]; nothing where no logit is a number above -inf.
    """
    logits = torch.where(logits.isnan(), -math.inf, logits)
    depth, last = depths(logits), _SMALLEST_FINITE
    first = int(depth.min())
    if first > last:
        return torch.zeros_like(depth, dtype=torch.bool)
    drop = drops(logits, temperature)
    if filters.top_k > 0:
        last = _search(depth, torch.ones_like(depth), first, last, filters.top_k)
    if filters.top_p < 1:
        weight = weights(drop)
        total = int(weight[depth <= last].sum())
        last = _search(depth, weight, first, last, share_of(total, filters.top_p))
    most = torch.tensor(largest_drop(filters.min_p), dtype=torch.float32, device=logits.device)
    return (depth <= last) & (drop <= most)


def _search(depth: torch.Tensor, measure: torch.Tensor, first: int, last: int, target: int) -> int:
    """The depth of the last token than which the larger ones measure less than `target`, or a depth below it that is
    as good: one that no other token lies above.

    Args:
        depth: int64 [n]. measure: int64 [n].
        first, last: depths between which it is sought; what is less deep than `first` does not count.
        target: at least 1.
    """
    before = 0  # of the larger tokens
    while True:
        shift = max(0, (last - first).bit_length() - _BIN_BITS)
        inside = (depth >= first) & (depth <= last)
        bins = ((depth - first) >> shift)[inside]
        count = torch.zeros(1 << _BIN_BITS, dtype=torch.int64).scatter_add_(0, bins, torch.ones_like(bins))
        sums = torch.zeros(1 << _BIN_BITS, dtype=torch.int64).scatter_add_(0, bins, measure[inside])
        above = before + sums.cumsum(0) - sums
        found = int(((count > 0) & (above < target)).nonzero()[-1])
        before = int(above[found])
        first += found << shift
        last = min(last, first + (1 << shift) - 1)
        if shift == 0 or count[found] == 1:
            return last
