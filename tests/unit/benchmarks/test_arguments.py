from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.arguments import count, counts, names, number


def test_names_are_taken_once_and_in_their_order() -> None:
    assert names(("a", "b", "c"))("c,a,c") == ["c", "a"]


def test_none_is_the_empty_list_where_it_is_allowed() -> None:
    assert names(("a",), none=True)("none") == []
    with pytest.raises(argparse.ArgumentTypeError, match="'none' is not one of a"):
        names(("a",))("none")


def test_counts_ascend() -> None:
    assert counts("8192,128,4096,128") == [128, 4096, 8192]


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (names(("a", "b")), "a,x", "'x' is not one of a, b"),
        (names(("a", "b")), "", "'' is not one of a, b"),
        (count(2), "1", "'1' is not a whole number of at least 2"),
        (count(1), "-3", "at least 1"),
        (count(1), "1.5", "at least 1"),
        (count(1), "²", "at least 1"),
        (counts, "128,,4096", "'' is not a whole number"),
        (counts, "0", "'0' is not a whole number of at least 1"),
        (number, "-1", "'-1' is not a number of at least 0"),
        (number, "nan", "'nan' is not a number"),
        (number, "many", "'many' is not a number"),
    ],
)
def test_what_is_not_allowed_is_named(parse: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        parse(text)
