"""What filters leave: the reference's search against sorting on the host, and both against the definition."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.engine.sampling import leave
from jitmk.reference.ops.sample_filter import (
    NO_FILTERS,
    Filters,
    allowed,
    depths,
    drops,
    largest_drop,
    weights,
)
from tests.support.filter_cases import FILTERS, LOGITS, TEMPERATURES

SIZES = (1, 7, 1000)


def by_definition(logits: torch.Tensor, temperature: float, filters: Filters) -> list[bool]:
    """Token by token, as the module's docstring says it."""
    values, drop = logits.tolist(), drops(logits, temperature).tolist()
    weight = weights(torch.tensor(drop)).tolist()
    left = [not filters.top_k or sum(other > value for other in values) < filters.top_k for value in values]
    kept = [(value, w) for value, w, is_left in zip(values, weight, left, strict=True) if is_left]
    total = sum(w for _, w in kept)
    most = float(torch.tensor(largest_drop(filters.min_p)))
    for i, value in enumerate(values):
        above = sum(w for other, w in kept if other > value)
        if filters.top_p < 1:
            left[i] = left[i] and above < Fraction(filters.top_p * total)
        left[i] = left[i] and drop[i] <= most
    return left


@pytest.mark.parametrize("name", LOGITS)
def test_searching_finds_what_sorting_finds(name: str) -> None:
    random = torch.Generator().manual_seed(len(name))
    for filters in FILTERS:
        for temperature in TEMPERATURES:
            for size in SIZES:
                logits = LOGITS[name](size, random)
                logits = torch.where(logits.isnan(), -math.inf, logits)
                # A token with the logit -inf is never drawn, whatever becomes of it.
                real = logits > -math.inf
                found, expected = allowed(logits, temperature, filters), leave(logits, temperature, filters)
                assert torch.equal(found & real, expected & real), (filters, temperature, size)
                assert bool((found & real).any()) == bool(real.any()), "something is left to draw"


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, 1.5, 1.5000001, -2.0, 7.0, -math.inf, math.inf]), min_size=1, max_size=12
    ),
    st.sampled_from([0, 1, 2, 3, 30]),
    st.floats(1e-9, 1.0),
    st.floats(0.0, 1.0),
    st.sampled_from([0.01, 0.7, 1.0, 20.0]),
)
def test_what_is_left_is_as_defined(
    values: list[float], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits, filters = torch.tensor(values), Filters(top_k, top_p, min_p)
    if max(values) == -math.inf:
        assert not allowed(logits, temperature, filters).any()
        return
    expected = by_definition(logits, temperature, filters)
    for found in (allowed(logits, temperature, filters), leave(logits, temperature, filters)):
        for token, value in enumerate(values):
            assert bool(found[token]) == expected[token] or value == -math.inf, (token, found, expected)


def test_equal_logits_share_their_fate() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    for filters, count in (
        (Filters(top_k=2), 4),
        (Filters(top_k=1), 1),
        (Filters(top_p=0.5), 4),
        (Filters(min_p=0.3), 4),
    ):
        for found in (allowed(logits, 1.0, filters), leave(logits, 1.0, filters)):
            assert found.tolist() == [i < count for i in range(5)]


def test_weights_are_probabilities() -> None:
    drop = torch.linspace(0, 20, 10001)
    exact = torch.pow(2.0, 31 - drop.double())
    # The polynomial is off by 1e-7; the last sums of its evaluation round by 2^-24 of up to twice the value each.
    assert ((weights(drop) - exact).abs() <= (1e-7 + 2 * 2**-23) * exact + 1).all()
    assert weights(torch.tensor([0.0, 1.0, 31.0, 32.0, math.inf])).tolist() == [2**31, 2**30, 1, 0, 0]
    assert (weights(drop).diff() <= 0).all()


def test_depths_count_floats_from_the_top() -> None:
    values = torch.tensor([math.inf, 3e38, 1.0000001, 1.0, 1e-45, 0.0, -1e-45, -1.0, -math.inf])
    found = depths(values)
    assert (found.diff() > 0).all()
    assert int(found[3] - found[2]) == 1 and int(found[6] - found[4]) == 3, "-0 takes a place, though no value"
    assert len(set(depths(torch.tensor([0.0, -0.0])).tolist())) == 1


def test_filters_that_do_nothing() -> None:
    assert not NO_FILTERS.active and not Filters(0, 1.0, 0.0).active
    assert all(Filters(**one).active for one in ({"top_k": 1}, {"top_p": 0.9}, {"min_p": 0.1}))
    logits = torch.randn(100)
    assert leave(logits, 1.0, NO_FILTERS).all() and allowed(logits, 1.0, NO_FILTERS).all()
