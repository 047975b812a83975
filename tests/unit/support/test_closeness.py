"""The comparison finds what it is there to find."""

from __future__ import annotations

import pytest
import torch

from tests.support.closeness import TOLERANCES, assert_close, relative_norm

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("kind", TOLERANCES)
def test_equal_is_close_and_far_is_not(kind: str) -> None:
    expected = torch.linspace(-3, 3, 64)
    assert_close(kind, expected.clone(), expected)
    with pytest.raises(AssertionError):
        assert_close(kind, expected * 1.05, expected)


@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_must_agree(kind: str, value: float) -> None:
    expected = torch.ones(8)
    expected[5] = value
    assert_close(kind, expected.clone(), expected)
    for other in (1.0, NAN, INF, -INF):
        if other == value or (other != other and value != value):
            continue
        wrong = expected.clone()
        wrong[5] = other
        with pytest.raises(AssertionError, match=r"first at \(5,\)"):
            assert_close(kind, wrong, expected)


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_close("moved", torch.ones(3), torch.ones(1))


def test_one_value_off_is_named() -> None:
    expected = torch.ones(4, 4)
    actual = expected.clone()
    actual[2, 3] = 1.5
    with pytest.raises(AssertionError, match=r"here: 1 of 16 values are off, first at \(2, 3\): 1\.5 instead of 1\.0"):
        assert_close("bf16 of a sum", actual, expected, "here")


def test_one_position_left_out_of_four_thousand_shows() -> None:
    """What the tolerance of attention is for: a missing position changes the sum more than roundings do."""
    values = torch.randn(4096, 64, generator=torch.Generator().manual_seed(1)).double()
    whole, without = values.mean(0), values[1:].sum(0) / 4096
    assert relative_norm(without, whole) > TOLERANCES["attention"].norm


def test_nothing_compared_with_nothing() -> None:
    assert relative_norm(torch.zeros(3), torch.zeros(3)) == 0.0
    assert relative_norm(torch.ones(3), torch.zeros(3)) == INF
