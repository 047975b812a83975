"""What is chosen from made-up measurements: noise, drift, ties, crossovers. No GPU and no clock."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

import pytest

from jitmk.arch import GpuArch
from jitmk.engine.tuner import MIN_GAIN, SPLITS, Measurement, choose, make_plan, measure_all
from jitmk.engine.tuning import Tuning, Value, default_tuning, parse_tuning
from tests.support.shapes import llama

H200 = GpuArch.parse("sm_90a")
SPEC = llama(2048, 8192, 2, 32, 8, 64, vocab_size=1000)
DEFAULT = Tuning(3, 2, 0, "round_robin", ((0, 1), (400, 16)))


def at(choice: str, context: int, **us: float) -> list[Measurement]:
    """Measurements without noise: at("window", 128, w2=600, w3=590)."""
    return [Measurement(choice, int(value[1:]), context, (time,) * 3) for value, time in us.items()]


def windows(**us: float) -> int:
    return choose(at("window", 128, **us), DEFAULT).window


def test_without_measurements_nothing_changes() -> None:
    assert choose([], DEFAULT) == DEFAULT


def test_the_fastest_wins() -> None:
    assert windows(w2=620, w3=600, w4=590) == 4
    assert windows(w2=620, w3=600, w4=610) == 3


def test_a_tie_and_a_small_gain_leave_the_default() -> None:
    assert windows(w2=600, w3=600, w4=600) == 3
    assert windows(w3=600, w4=600 * (1 - MIN_GAIN) + 0.01) == 3
    assert windows(w3=600, w4=600 * (1 - MIN_GAIN) - 0.01) == 4


def test_of_equally_fast_ones_the_first_measured_wins() -> None:
    assert windows(w5=500, w3=600, w4=500) == 5


def test_a_knob_must_pay_over_its_contexts_together() -> None:
    measured = at("window", 128, w3=600, w4=590) + at("window", 2048, w3=600, w4=612)
    assert choose(measured, DEFAULT).window == 3


def test_drifting_clocks_do_not_choose() -> None:
    """Window 4 is a percent slower in each round, but was measured when clocks were high more often."""
    rounds = [600.0, 500.0, 400.0]
    slow = Measurement("window", 4, 128, tuple(1.01 * us for us in rounds))
    default = Measurement("window", 3, 128, tuple(rounds))
    assert choose([default, slow], DEFAULT).window == 3
    fast = Measurement("window", 4, 128, tuple(0.99 * us for us in rounds))
    assert choose([default, fast], DEFAULT).window == 4


def test_an_outlier_does_not_choose() -> None:
    measured = [Measurement("window", 3, 128, (600, 600, 900)), Measurement("window", 4, 128, (600, 600, 600))]
    assert choose(measured, DEFAULT).window == 3


def test_where_splits_cross_is_between_the_contexts() -> None:
    """4 splits lose 30 us at 128 and win 10 at 256: three quarters of the way."""
    measured = at(SPLITS, 128, s1=600, s4=630, s16=700) + at(SPLITS, 256, s1=620, s4=610, s16=640)
    measured += at(SPLITS, 512, s1=700, s4=640, s16=630)
    steps = choose(measured, DEFAULT).split_steps
    assert [splits for _, splits in steps] == [1, 4, 16]
    assert steps[0][0] == 0 and steps[1][0] == pytest.approx(128 + 0.75 * 128, abs=4)
    assert 256 < steps[2][0] <= 512


def test_where_the_default_holds_its_own_crossover_stays() -> None:
    measured = at(SPLITS, 128, s1=600, s16=650) + at(SPLITS, 1024, s1=900, s16=650)
    assert choose(measured, DEFAULT) == DEFAULT


def test_a_gain_below_the_threshold_keeps_the_default_number() -> None:
    measured = at(SPLITS, 128, s1=600, s4=598, s16=700) + at(SPLITS, 1024, s1=900, s4=648, s16=650)
    assert choose(measured, DEFAULT) == DEFAULT


def test_past_the_last_context_the_choice_holds_until_the_default_changes() -> None:
    assert choose(at(SPLITS, 128, s1=600, s4=500, s16=700), DEFAULT).split_steps == ((0, 4), (400, 16))
    assert choose(at(SPLITS, 1024, s1=900, s8=600, s16=650), DEFAULT).split_steps == ((0, 8),)


def test_before_the_first_context_the_defaults_steps_stay_if_it_holds() -> None:
    measured = at(SPLITS, 1024, s1=900, s8=660, s16=650) + at(SPLITS, 2048, s1=1200, s8=690, s16=700)
    steps = choose(measured, DEFAULT).split_steps
    assert steps[:2] == DEFAULT.split_steps and steps[2][1] == 8 and 1024 < steps[2][0] <= 2048


def plan_of(rounds: int = 5, factor: float = 2.0, last: int = 4096) -> tuple[Tuning, list[int], Callable[..., object]]:
    default = default_tuning(SPEC, H200, 131072)
    plan = make_plan(SPEC, H200, default, first=128, last=last, factor=factor, rounds=rounds)
    return default, list(plan.contexts), lambda measure: measure_all(plan, default, measure)


@pytest.mark.parametrize(
    ("last", "factor", "contexts"),
    [
        (4096, 2.0, [128, 256, 512, 1024, 2048, 4096]),
        (1000, 2.0, [128, 256, 512, 1000]),
        (4096, 4.0, [128, 512, 2048, 4096]),
        (128, 2.0, [128]),
        (48, 2.0, [48]),
    ],
)
def test_contexts_grow_up_to_the_last(last: int, factor: float, contexts: list[int]) -> None:
    assert plan_of(last=last, factor=factor)[1] == contexts


class MadeUpGpu:
    """A GPU whose times follow from a formula, whose clock falls all the time, and whose every launch is a bit off."""

    def __init__(self, noise: float, best_window: int = 4, seed: int = 1) -> None:
        self.noise = noise
        self.best_window = best_window
        self.random = random.Random(seed)
        self.calls: list[tuple[Tuning, int]] = []

    def true_us(self, tuning: Tuning, context: int) -> float:
        splits = tuning.splits(context)
        attention = context / splits * 0.3 + (60 + 2 * splits if splits > 1 else 0)
        policy = {"level": 0, "round_robin": 3, "zigzag": 2, "wave": 1, "list": 20, "pool": 40}[tuning.policy]
        return 600 + attention + policy + 12 * abs(tuning.window - self.best_window)

    def measure(self, tuning: Tuning, context: int) -> float:
        self.calls.append((tuning, context))
        drift = 1 + 0.1 * len(self.calls) / 1000
        return self.true_us(tuning, context) * drift * (1 + self.noise * self.random.gauss(0, 1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_the_made_up_gpu_is_tuned(noise: float, seed: int) -> None:
    default = default_tuning(SPEC, H200, 131072)
    plan = make_plan(SPEC, H200, default, first=128, last=4096, factor=2.0, rounds=9)
    gpu = MadeUpGpu(noise, seed=seed)
    tuning = choose(measure_all(plan, default, gpu.measure), default)
    assert len(gpu.calls) == plan.launches
    assert (tuning.window, tuning.policy) == (4, "level")
    assert parse_tuning(asdict(tuning), SPEC, H200) == tuning
    assert tuning.splits(128) == 1 and tuning.splits(4096) == 16
    for context in plan.contexts:
        best = min(gpu.true_us(Tuning(4, 2, 0, "level", ((0, s),)), context) for s in plan.ladder)
        assert gpu.true_us(tuning, context) <= best * (1 + MIN_GAIN + 3 * noise)


def test_values_take_turns_forwards_and_backwards_after_one_to_warm_up() -> None:
    default = default_tuning(SPEC, H200, 131072)
    plan = make_plan(SPEC, H200, default, first=128, last=128, factor=2.0, rounds=2)
    gpu = MadeUpGpu(0.0)
    measure_all(plan, default, gpu.measure)
    values: tuple[Value, ...] = plan.candidates["window"]
    order = [tuning.window for tuning, _ in gpu.calls[: 3 * len(values)]]
    assert order == [*values[::-1], *values, *values[::-1]]
    tried = Counter(tuning.split_steps for tuning, _ in gpu.calls)
    assert all(tried[(0, splits),] >= 3 for splits in plan.ladder)


def test_later_choices_are_measured_beside_earlier_ones() -> None:
    default = default_tuning(SPEC, H200, 131072)
    plan = make_plan(SPEC, H200, default, first=128, last=128, factor=2.0, rounds=1)
    gpu = MadeUpGpu(0.0, best_window=2)
    measure_all(plan, default, gpu.measure)
    assert {tuning.window for tuning, _ in gpu.calls[-len(plan.ladder) :]} == {2}
