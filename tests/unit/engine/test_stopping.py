"""Stop strings across pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.engine.stopping import StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    """Everything that is shown, and the stop string that was found."""
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    return shown + matcher.flush(), matcher.matched


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "matched"),
    [
        ([], ["a", "b"], "ab", None),
        (["\n\n"], ["one\n", "\ntwo"], "one", "\n\n"),
        (["\n\n"], ["one\n", "two\n"], "one\ntwo\n", None),
        (["END"], ["the E", "N", "D of it"], "the ", "END"),
        (["END"], ["EENEND"], "EEN", "END"),
        (["aab"], ["aa", "a", "b"], "a", "aab"),
        (["ab", "abc"], ["xabc"], "x", "ab"),
        (["bc", "abcd"], ["abcd"], "a", "bc"),
        (["c", "abc"], ["zabc"], "z", "abc"),
        (["😀"], ["a", "😀", "b"], "a", "😀"),
    ],
)
def test_examples(stops: list[str], pieces: list[str], shown: str, matched: str | None) -> None:
    assert run(stops, pieces) == (shown, matched)


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("go ST") == "go "
    assert matcher.push("A") == "STA"
    assert matcher.push("STOP and more") == ""
    assert (matcher.matched, matcher.push("more"), matcher.flush()) == ("STOP", "", "")


@settings(deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_where_the_pieces_are_cut_does_not_matter(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    ends = [(end, end - len(stop), stop) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
    expected = (text[: min(ends)[1]], min(ends)[2]) if ends else (text, None)
    assert run(stops, pieces) == expected
    assert run(stops, list(text)) == expected
