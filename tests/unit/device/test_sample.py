"""LM head and SAMPLE by themselves, on the host: the SMs find the thresholds of sampling filters together."""

from __future__ import annotations

from jitmk.engine.backend import DeviceSampling
from tests.support.filter_cases import FILTERS, TIGHT_FILTERS
from tests.support.op_runner import Step
from tests.support.single_sample import check_filtered, random_head, run_head
from tests.unit.device.conftest import HostRunners


def test_greedy_takes_the_largest_logit(host_runners: HostRunners) -> None:
    outcome = run_head(host_runners["embed-sample"], *random_head(), Step())
    assert outcome.logits is not None and outcome.token == int(outcome.logits.argmax())


def test_filters_leave_what_the_host_leaves(host_runners: HostRunners) -> None:
    """Nothing is cleared between launches, so each finds what the one before left; every other one has no filters."""
    runner, decided = host_runners["embed-sample"], 0
    for i, filters in enumerate(FILTERS):
        rows, x = random_head(seed=1000 + i)
        step = Step(position=31 * i, sampling=DeviceSampling((0.8, 3.0, 0.3)[i % 3], 7 + i, filters=filters))
        decided += check_filtered(run_head(runner, rows * (1, 6)[i % 2], x, step), step)
        plain = Step(position=31 * i, sampling=DeviceSampling(1.0, 7 + i))
        check_filtered(run_head(runner, rows, x, plain), plain)
    assert decided >= 0.9 * len(FILTERS)


def test_not_one_token_too_many_is_left_or_too_few(host_runners: HostRunners) -> None:
    """SMs have many logits near these thresholds, or few."""
    runner, decided = host_runners["embed-sample"], 0
    for i, filters in enumerate(TIGHT_FILTERS * 3):
        step = Step(position=i, sampling=DeviceSampling(50.0, i, filters=filters))
        decided += check_filtered(run_head(runner, *random_head(seed=i), step), step)
    assert decided >= 2.5 * len(TIGHT_FILTERS)
