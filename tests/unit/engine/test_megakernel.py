"""What the megakernel backend asks of its launcher, in which order; a launcher that pretends is enough for that."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from jitmk.engine.backend import DeviceSampling
from jitmk.engine.launcher import LAST_TOKEN
from jitmk.engine.megakernel import STEPS_PER_LAUNCH, MegakernelBackend

FIRST, POSITION = 5, 10


@dataclass
class PretendedLauncher:
    """The token of epoch e is e + 100; `events` says who did what: launches, and tokens that were read.

    Torch's current stream is another one each time that it is looked up.
    """

    follows: bool = True
    events: list[Any] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)
    entered: int = 0
    epoch: int = 1

    def enter_stream(self) -> int:
        self.entered += 1
        return self.entered

    def can_follow(self, program: object, steps: int) -> bool:
        return self.follows

    def launch(
        self, program: object, token: int, position: int, steps: int, sampling: DeviceSampling, *, stream: int
    ) -> int:
        self.events.append(("launch", token, position, steps))
        self.streams.append(stream)
        self.epoch += steps
        return self.epoch - steps

    def token(self, epoch: int) -> int:
        self.events.append(epoch + 100)
        return epoch + 100

    @property
    def launches(self) -> list[Any]:
        return [event for event in self.events if isinstance(event, tuple)]


def backend(follows: bool = True) -> tuple[MegakernelBackend, PretendedLauncher]:
    made, launcher = MegakernelBackend.__new__(MegakernelBackend), PretendedLauncher(follows)
    one = SimpleNamespace()
    programs = SimpleNamespace(for_context=lambda _: one, expect=lambda first, last: None)
    made.__dict__.update(_closed=False, _launcher=launcher, _programs=programs)
    return made, launcher


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("steps", [0, 1, STEPS_PER_LAUNCH - 1, STEPS_PER_LAUNCH, STEPS_PER_LAUNCH + 1, 50])
def test_every_token_comes_once_and_feeds_the_next_launch(steps: int, follows: bool) -> None:
    made, launcher = backend(follows)
    tokens = list(made.decode_stream(FIRST, POSITION, steps, DeviceSampling()))
    assert tokens == [101 + i for i in range(steps)]
    assert launcher.launches == [
        (
            "launch",
            FIRST if i == 0 else LAST_TOKEN if follows else tokens[i - 1],
            POSITION + i,
            min(STEPS_PER_LAUNCH, steps - i),
        )
        for i in range(0, steps, STEPS_PER_LAUNCH)
    ]


def test_a_launch_is_queued_behind_the_one_under_way_before_the_reader_has_its_first_token() -> None:
    made, launcher = backend()
    next(made.decode_stream(FIRST, POSITION, 40, DeviceSampling()))
    assert launcher.events[1:] == [101, ("launch", LAST_TOKEN, POSITION + STEPS_PER_LAUNCH, STEPS_PER_LAUNCH)]


@pytest.mark.parametrize("follows", [True, False])
def test_a_generation_stays_on_the_stream_that_was_current_at_its_first_token(follows: bool) -> None:
    made, launcher = backend(follows)
    for generation in (1, 2):
        list(made.decode_stream(FIRST, POSITION, 40, DeviceSampling()))
        assert launcher.entered == generation
    assert launcher.streams == [1, 1, 1, 2, 2, 2]


def test_what_cannot_follow_waits_for_the_last_token() -> None:
    made, launcher = backend(follows=False)
    stream = made.decode_stream(FIRST, POSITION, 40, DeviceSampling())
    for _ in range(STEPS_PER_LAUNCH):
        next(stream)
    assert len(launcher.launches) == 1
    next(stream)
    assert len(launcher.launches) == 2


@pytest.mark.parametrize(
    ("at", "launches"), [(0, 1), (3, 2), (STEPS_PER_LAUNCH - 1, 2), (STEPS_PER_LAUNCH, 2), (STEPS_PER_LAUNCH + 1, 3)]
)
def test_a_stop_token_is_the_last_one_and_nothing_is_launched_after_it(at: int, launches: int) -> None:
    made, launcher = backend()
    tokens = list(made.decode_stream(FIRST, POSITION, 40, DeviceSampling(stop_tokens=(101 + at,))))
    assert tokens == [101 + i for i in range(at + 1)]
    assert launcher.events[-1] == 101 + at and len(launcher.launches) == launches
