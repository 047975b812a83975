from __future__ import annotations

from typing import Any, cast

import pytest

from benchmarks import sampling
from benchmarks.measure import Live
from benchmarks.sampling import WAYS, measure, print_records
from jitmk.engine.sampling import SamplingParams


class FakeLive:
    """Takes the more time the more a way filters."""

    name = "llama-3.2-1b"

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def generate(self, context: int, tokens: int, **arguments: Any) -> tuple[float, float]:
        assert (context, tokens) == (128, 512)
        self.calls.append(tuple(sorted(arguments)))
        if len(self.calls) <= len(WAYS):
            return 9999.0, 0.0  # the first round warms up
        us = 600.0 * (1 + 0.005 * (arguments["temperature"] > 0) + 0.1 * ("top_k" in arguments))
        return us, 30.0


def test_ways_take_turns_and_are_held_to_greedy(capsys: pytest.CaptureFixture[str]) -> None:
    live = FakeLive()
    records = measure(cast(Live, live), 128, 512, 2)
    assert [record.way for record in records] == ["greedy", "temperature 0.8", "top-k 50", "top-p 0.9", "min-p 0.05"]
    assert [round(record.ratio, 3) for record in records] == [1.0, 1.005, 1.105, 1.005, 1.005]
    assert [record.target for record in records] == [1.0, 1.01, 1.05, 1.05, 1.05]
    assert [record.met for record in records] == [True, True, False, True, True]
    assert live.calls == live.calls[: len(WAYS)] * 3
    print_records(records)
    missed = [line for line in capsys.readouterr().out.splitlines() if "MISSED" in line]
    assert len(missed) == 1 and "top-k 50" in missed[0]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_generate_takes_the_arguments(way: sampling.Way) -> None:
    assert SamplingParams.resolve({}, **way.arguments).greedy is (way is sampling.GREEDY)


@pytest.mark.parametrize("arguments", [["--models", "x"], ["--context", "0"], ["--tokens", "1"], ["--repeats", "0"]])
def test_a_wrong_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sampling.main(arguments)
