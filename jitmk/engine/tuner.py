"""What `jitmk tune` does: which choices to measure, and what to choose from the measurements.

Clocks drift while one measures, so the values of a choice take turns, forwards in one round and backwards in the next,
and what counts is the median over rounds of a value's time divided by the default's in the same round. Only what beats
the default by `MIN_GAIN` replaces it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from jitmk.arch import GpuArch
from jitmk.engine.tuning import KNOBS, Tuning, Value
from jitmk.model.spec import ModelSpec
from jitmk.schedule.cost import split_ladder

MIN_GAIN = 0.005
"""The part of a step's time by which a value must be faster than the default to be chosen."""

SPLITS = "splits"
"""What stands for the choice of splits where knobs have their names."""

Measure = Callable[[Tuning, int], float]
"""Microseconds of a decode step with a tuning, behind so many positions."""


@dataclass(frozen=True)
class Measurement:
    """One value of one choice at one context.

    Attributes:
        choice: a knob's name, or `SPLITS`.
        value: the value that was tried.
        context: positions in the cache.
        us: microseconds a step, one for each round; entry i of all values at a context is from the same round.
    """

    choice: str
    value: Value
    context: int
    us: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        candidates: the values of each knob.
        ladder: the numbers of splits.
        contexts: growing; all at which splits are measured. Knobs are measured at the first and one in the middle.
        rounds: how often each value is measured.
    """

    candidates: Mapping[str, tuple[Value, ...]]
    ladder: tuple[int, ...]
    contexts: tuple[int, ...]
    rounds: int

    @property
    def knob_contexts(self) -> tuple[int, ...]:
        """Contexts at which knobs are measured."""
        return tuple(sorted({self.contexts[0], self.contexts[len(self.contexts) // 2]}))

    @property
    def launches(self) -> int:
        """Calls of the measure function, those that only warm up included."""
        knobs = sum(len(values) for values in self.candidates.values() if len(values) > 1)
        splits = len(self.ladder) * len(self.contexts)
        return (self.rounds + 1) * (knobs * len(self.knob_contexts) + splits)


def make_plan(
    spec: ModelSpec, arch: GpuArch, default: Tuning, *, first: int, last: int, factor: float, rounds: int
) -> Plan:
    """What to measure for a model on a GPU, at contexts from `first` to `last` that grow by `factor`."""
    first = min(first, last)
    count = math.ceil(math.log(last / first) / math.log(factor) - 1e-9)
    contexts = {min(last, round(first * factor**i)) for i in range(count + 1)}
    candidates = {knob.name: knob.candidates(spec, arch, getattr(default, knob.name)) for knob in KNOBS}
    return Plan(candidates, split_ladder(spec, arch.sm_count), tuple(sorted(contexts)), rounds)


def measure_all(plan: Plan, default: Tuning, measure: Measure) -> list[Measurement]:
    """Measures what is planned: one knob after the other, each beside what was chosen for those before, then splits."""
    done: list[Measurement] = []
    for name, values in plan.candidates.items():
        if len(values) > 1:
            base = choose(done, default)
            trials = {value: _with_knob(base, name, value) for value in values}
            for context in plan.knob_contexts:
                done += _take_turns(name, trials, context, plan.rounds, measure)
    base = choose(done, default)
    for context in plan.contexts:
        trials = {splits: replace(base, split_steps=((0, splits),)) for splits in plan.ladder}
        done += _take_turns(SPLITS, trials, context, plan.rounds, measure)
    return done


def choose(measurements: Sequence[Measurement], default: Tuning) -> Tuning:
    """The tuning that measurements speak for; where they do not, that of `default`.

    Contexts between two that were measured follow both: where these differ, the number of splits changes at the context
    at which their times cross. Contexts past the last one follow it as long as `default` does not change.

    Args:
        measurements: of any choices; those of a choice and a context have the default's value among them.
    """
    tuning = default
    for knob in KNOBS:
        mine = [m for m in measurements if m.choice == knob.name]
        if mine:
            tuning = _with_knob(tuning, knob.name, _best(mine, getattr(default, knob.name)))
    splits = [m for m in measurements if m.choice == SPLITS]
    return replace(tuning, split_steps=_split_steps(splits, default)) if splits else tuning


def _with_knob(tuning: Tuning, name: str, value: Value) -> Tuning:
    changes: dict[str, Any] = {name: value}
    return replace(tuning, **changes)


def _take_turns(
    choice: str, trials: Mapping[Value, Tuning], context: int, rounds: int, measure: Measure
) -> list[Measurement]:
    """Measures all values in each round; a first round that does not count prepares programs and warms up."""
    us: dict[Value, list[float]] = {value: [] for value in trials}
    for i in range(rounds + 1):
        for value in list(trials)[:: 1 if i % 2 else -1]:
            measured = measure(trials[value], context)
            if i > 0:
                us[value].append(measured)
    return [Measurement(choice, value, context, tuple(samples)) for value, samples in us.items()]


def _best(measurements: Sequence[Measurement], default: Value) -> Value:
    """The value that takes the smallest part of the default's time, a mean over the contexts; or the default."""
    reference = {m.context: m for m in measurements if m.value == default}
    ratios: dict[Value, list[float]] = {}
    for m in measurements:
        ratios.setdefault(m.value, []).append(_ratio(m, reference[m.context]))
    best = min(ratios, key=lambda value: statistics.mean(ratios[value]))
    return best if statistics.mean(ratios[best]) <= 1 - MIN_GAIN else default


def _ratio(one: Measurement, other: Measurement) -> float:
    """The time of one value divided by that of another, the median over rounds."""
    return statistics.median(a / b for a, b in zip(one.us, other.us, strict=True))


def _split_steps(measurements: Sequence[Measurement], default: Tuning) -> tuple[tuple[int, int], ...]:
    """From the best number of splits at each measured context to one for every context."""
    at: dict[int, dict[Value, Measurement]] = {}
    for m in measurements:
        at.setdefault(m.context, {})[m.value] = m
    contexts = sorted(at)
    best = {c: int(_best(list(at[c].values()), default.splits(c))) for c in contexts}
    first, last = contexts[0], contexts[-1]
    as_default = {c: best[c] == default.splits(c) for c in contexts}

    steps = [step for step in default.split_steps if step[0] <= first] if as_default[first] else [(0, best[first])]
    for low, high in pairwise(contexts):
        if as_default[low] and as_default[high]:
            steps += [step for step in default.split_steps if low < step[0] <= high]
        elif best[low] != best[high]:
            before, after = best[low], best[high]
            loss = _ratio(at[low][after], at[low][before]) - 1
            gain = 1 - _ratio(at[high][after], at[high][before])
            share = min(1.0, max(0.0, loss / (loss + gain))) if loss + gain > 0 else 1.0
            steps.append((low + max(1, round(share * (high - low))), after))
    steps += [step for step in default.split_steps if step[0] > last]
    return tuple(step for i, step in enumerate(steps) if i == 0 or step[1] != steps[i - 1][1])
