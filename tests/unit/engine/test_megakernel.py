"""What the megakernel backend asks of its launcher, in which order; a launcher that pretends is enough for that."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from jitmk.engine.backend import DeviceSampling
from jitmk.engine.megakernel import STEPS_PER_LAUNCH, MegakernelBackend

FIRST, POSITION = 5, 10


@dataclass
class PretendedLauncher:
    """The token of epoch e is e + 100; `events` says who did what: launches, and tokens that were read."""

    events: list[Any] = field(default_factory=list)
    epoch: int = 1

    def launch(self, program: object, token: int, position: int, steps: int, sampling: DeviceSampling) -> int:
        self.events.append(("launch", token, position, steps))
        self.epoch += steps
        return self.epoch - steps

    def token(self, epoch: int) -> int:
        self.events.append(epoch + 100)
        return epoch + 100


def backend() -> tuple[MegakernelBackend, PretendedLauncher]:
    made, launcher = MegakernelBackend.__new__(MegakernelBackend), PretendedLauncher()
    one = SimpleNamespace()
    programs = SimpleNamespace(splits=lambda _: 1, for_splits=lambda _: one, for_context=lambda _: one)
    made.__dict__.update(_closed=False, _launcher=launcher, _programs=programs)
    return made, launcher


@pytest.mark.parametrize("steps", [0, 1, STEPS_PER_LAUNCH - 1, STEPS_PER_LAUNCH, STEPS_PER_LAUNCH + 1, 50])
def test_every_token_comes_once_and_feeds_the_next_launch(steps: int) -> None:
    made, launcher = backend()
    tokens = list(made.decode_stream(FIRST, POSITION, steps, DeviceSampling()))
    assert tokens == [101 + i for i in range(steps)]
    launches = [event for event in launcher.events if isinstance(event, tuple)]
    begins = range(0, steps, STEPS_PER_LAUNCH)
    assert launches == [
        ("launch", ([FIRST, *tokens])[i], POSITION + i, min(STEPS_PER_LAUNCH, steps - i)) for i in begins
    ]


def test_the_next_launch_is_under_way_before_the_reader_has_its_turn() -> None:
    made, launcher = backend()
    stream = made.decode_stream(FIRST, POSITION, 40, DeviceSampling())
    for _ in range(STEPS_PER_LAUNCH):
        last = next(stream)
    assert launcher.events[-1] == ("launch", last, POSITION + STEPS_PER_LAUNCH, STEPS_PER_LAUNCH)


@pytest.mark.parametrize("at", [0, 3, STEPS_PER_LAUNCH - 1, STEPS_PER_LAUNCH])
def test_a_stop_token_is_the_last_one_and_nothing_is_launched_behind_it(at: int) -> None:
    made, launcher = backend()
    tokens = list(made.decode_stream(FIRST, POSITION, 40, DeviceSampling(stop_tokens=(101 + at,))))
    assert tokens == [101 + i for i in range(at + 1)]
    assert launcher.events[-1] == 101 + at
