from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import measure
from benchmarks.measure import Live, require_sound, timed_calls, usable_contexts, word_tokenizer
from benchmarks.records import BenchmarkError
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.launcher import MegakernelLauncher
from jitmk.engine.megakernel import STEPS_PER_LAUNCH
from jitmk.program.weights import plan_weights
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


def test_contexts_without_room_or_truth_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert usable_contexts("phi-4-mini", [128, 4000, 8192], 512) == [128, 8192]
    assert "phi-4-mini at 4000 is left out: its rotary frequencies change" in capsys.readouterr().err
    assert usable_contexts("gemma-2-2b", [128, 8192], 64) == [128]
    with pytest.raises(BenchmarkError, match=r"no context is left for gpt2: it has 1024 positions.*--contexts"):
        usable_contexts("gpt2", [4096, 8192], 512)


class Launching(SteppedTorch):
    """Notes waits and generations, and launches as `decode_stream` of the megakernel does: some in each."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.seen: list[str | tuple[int, int]] = []

    def reset(self) -> None:
        self.seen.append("idle")
        super().reset()

    def decode_stream(
        self, token: int, position: int, steps: int, sampling: DeviceSampling
    ) -> Generator[int, None, None]:
        self.seen.append((position, steps))
        for first in range(0, steps, STEPS_PER_LAUNCH):
            MegakernelLauncher.launch(*[first] * 6)  # type: ignore[arg-type]
        return super().decode_stream(token, position, steps, sampling)


def test_launches_into_an_idle_stream_are_told_from_queued_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def launch(first: int, *_: object) -> None:
        nonlocal now
        now += 3e-6 if first else 8e-6

    monkeypatch.setattr(MegakernelLauncher, "launch", launch)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now))
    weights = source()
    backend = Launching(weights.spec, plan_weights(weights.spec), weights, CPU, 96, progress=False)
    with Live("tiny", CONFIG, weights, backend, CPU) as live:
        times = live.host_launch_us(9)
    assert (times.idle, times.queued) == pytest.approx((8.0, 3.0))
    rounds = backend.seen[-2 * measure._ROUNDS :]
    assert rounds == ["idle", (9, measure.CHECK_TOKENS)] * measure._ROUNDS
