from __future__ import annotations

import pytest

from benchmarks.measure import Live, require_sound, timed_calls, word_tokenizer
from benchmarks.records import BenchmarkError
from tests.unit.benchmarks.samples import comparison
from tests.unit.benchmarks.test_truth import CONFIG, CPU, SteppedTorch, source, stepped


class Counter:
    """Something with a method."""

    calls = 0

    def add(self, number: int, *, twice: bool = False) -> int:
        if number < 0:
            raise ValueError(number)
        self.calls += 1
        return number * (2 if twice else 1)


def test_calls_are_timed_and_left_as_they_were() -> None:
    original, counter = Counter.add, Counter()
    with timed_calls(Counter, "add") as seconds:
        assert (counter.add(1), counter.add(2, twice=True)) == (1, 4)
        with pytest.raises(ValueError):
            counter.add(-1)
    assert counter.calls == len(seconds) == 2 and all(time >= 0 for time in seconds)
    assert Counter.add is original


def test_the_method_comes_back_after_an_error() -> None:
    original = Counter.add
    with pytest.raises(ValueError), timed_calls(Counter, "add"):
        Counter().add(-1)
    assert Counter.add is original


def test_the_tokenizer_has_a_word_for_every_token() -> None:
    tokenizer = word_tokenizer(1000)
    assert tokenizer.decode([0, 999, 5]).split() == ["w0", "w999", "w5"]


def test_a_comparison_that_fails_stops_the_measurement() -> None:
    require_sound([comparison(), comparison()])
    with pytest.raises(BenchmarkError, match=r"it was not measured, .*: llama-3.2-1b at 128: error 0.03.*FAILED$"):
        require_sound([comparison(), comparison(error=0.03)])


def test_a_live_model_is_checked_and_timed() -> None:
    with Live("tiny", CONFIG, source(), stepped(SteppedTorch), CPU) as live:
        assert [made.context for made in live.check([9, 32], tokens=48)] == [9, 32]
        us, prefill_ms = live.generate(9, 12)
        assert us > 0 and prefill_ms > 0
        live.generate(9, 4, temperature=0.8, top_k=5, seed=1)


def test_a_live_model_with_other_weights_is_not_timed() -> None:
    with (
        Live("tiny", CONFIG, source(seed=1), stepped(SteppedTorch), CPU) as live,
        pytest.raises(BenchmarkError, match="it does not compute what it should: tiny at 9"),
    ):
        live.check([9], tokens=48)
