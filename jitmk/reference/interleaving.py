"""Agents that take turns: the orders in which many SMs may get to run, and the end where none can."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from jitmk.errors import ScheduleError


class DeadlockError(ScheduleError):
    """Everyone waits for someone who waits too, or for something that nobody does.

    Attributes:
        waits: of every agent that is not done, what it waits for.
    """

    def __init__(self, message: str, waits: Sequence[Wait] = ()) -> None:
        super().__init__(message)
        self.waits = tuple(waits)


@dataclass(frozen=True)
class Wait:
    """What an agent waits for.

    Attributes:
        sm, role: who waits.
        step: of the launch.
        instruction: index in the SM's queue; -1 before the first.
        phase: name of the instruction's phase; empty before the first.
        what: for example "values 0 to 63 of buffer 'layers.0.qkv.output'".
    """

    sm: int
    role: str
    step: int
    instruction: int
    phase: str
    what: str

    def __str__(self) -> str:
        where = f"instruction {self.instruction} ({self.phase})" if self.instruction >= 0 else "before its queue"
        return f"SM {self.sm} {self.role}, step {self.step}, {where}: waits for {self.what}"


Turns = Generator["Wait | None", None, None]
"""An agent's life: each turn does one thing that others may see (None), or finds that it must wait."""


@dataclass(eq=False)
class Agent:
    """One role of one SM."""

    sm: int
    role: str
    turns: Turns


class Interleaving(Protocol):
    """Decides who comes next."""

    def choose(self, able: Sequence[Agent]) -> Agent:
        """One of the agents that did not find themselves waiting since the last change; at least one."""


class RandomOrder:
    """Anyone, each turn."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, able: Sequence[Agent]) -> Agent:
        return self._random.choice(able)


class AsFarAsPossible:
    """One agent goes on until it must wait, then another one."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._current: Agent | None = None

    def choose(self, able: Sequence[Agent]) -> Agent:
        if self._current not in able:
            self._current = self._random.choice(able)
        assert self._current is not None
        return self._current


class Reverse:
    """The highest SM that can."""

    def choose(self, able: Sequence[Agent]) -> Agent:
        return max(able, key=lambda agent: agent.sm)


class Starve:
    """One SM (or one role of it) only when nobody else can; the others at random."""

    def __init__(self, sm: int, seed: int = 0, role: str | None = None) -> None:
        self._sm, self._role = sm, role
        self._random = random.Random(seed)

    def choose(self, able: Sequence[Agent]) -> Agent:
        others = [agent for agent in able if not self._is_starved(agent)]
        return self._random.choice(others or able)

    def _is_starved(self, agent: Agent) -> bool:
        return agent.sm == self._sm and self._role in (None, agent.role)


def run_to_end(agents: Sequence[Agent], interleaving: Interleaving) -> None:
    """Gives turns until all agents are done.

    Raises:
        DeadlockError: nobody can go on.
    """
    able = list(agents)
    waiting: dict[Agent, Wait] = {}
    while able:
        agent = interleaving.choose(able)
        try:
            wait = next(agent.turns)
        except StopIteration:
            able.remove(agent)
            wait = None
        if wait is not None:
            able.remove(agent)
            waiting[agent] = wait
        elif waiting:
            able += waiting
            waiting.clear()
    if waiting:
        waits = sorted(waiting.values(), key=lambda w: (w.step, w.instruction, w.sm))
        lines = "\n  ".join(map(str, waits))
        raise DeadlockError(f"deadlock: {len(waits)} agents wait and nobody can go on\n  {lines}", waits)
