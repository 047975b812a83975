from __future__ import annotations

import pytest

from jitmk.reference.interleaving import (
    Agent,
    AsFarAsPossible,
    DeadlockError,
    Interleaving,
    RandomOrder,
    Reverse,
    Starve,
    Turns,
    Wait,
    run_to_end,
)


def counting(sm: int, turns: int, log: list[int]) -> Turns:
    for _ in range(turns):
        log.append(sm)
        yield None


def waiting_for(sm: int, flags: set[int], wanted: int) -> Turns:
    while wanted not in flags:
        yield Wait(sm, "executor", 0, 3, "phase", f"flag {wanted}")
    flags.add(sm)
    yield None


@pytest.mark.parametrize("interleaving", [RandomOrder(0), AsFarAsPossible(0), Reverse(), Starve(1)])
def test_everyone_gets_to_the_end(interleaving: Interleaving) -> None:
    log: list[int] = []
    run_to_end([Agent(sm, "executor", counting(sm, 5, log)) for sm in range(4)], interleaving)
    assert sorted(log) == sorted([*range(4)] * 5)


def test_orders() -> None:
    def order(interleaving: Interleaving) -> list[int]:
        log: list[int] = []
        run_to_end([Agent(sm, "executor", counting(sm, 3, log)) for sm in range(3)], interleaving)
        return log

    assert order(Reverse()) == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert order(Starve(1))[-3:] == [1, 1, 1]
    runs = order(AsFarAsPossible(0))
    assert [runs[i] == runs[i + 1] for i in range(8)] == [True, True, False] * 2 + [True, True]
    assert order(RandomOrder(0)) != order(RandomOrder(1))


@pytest.mark.parametrize("interleaving", [RandomOrder(0), AsFarAsPossible(0), Reverse(), Starve(0)])
def test_waits_end_when_others_get_on(interleaving: Interleaving) -> None:
    flags = {3}
    run_to_end([Agent(sm, "executor", waiting_for(sm, flags, sm + 1)) for sm in range(3)], interleaving)
    assert flags == {0, 1, 2, 3}


def test_a_circle_of_waits_is_a_deadlock() -> None:
    flags: set[int] = {9}
    agents = [Agent(sm, "executor", waiting_for(sm, flags, (sm + 1) % 3)) for sm in range(3)]
    agents.append(Agent(7, "executor", waiting_for(7, flags, 9)))
    with pytest.raises(DeadlockError, match="3 agents wait and nobody can go on") as caught:
        run_to_end(agents, RandomOrder(0))
    assert [(wait.sm, wait.what) for wait in caught.value.waits] == [(0, "flag 1"), (1, "flag 2"), (2, "flag 0")]
    assert "SM 1 executor, step 0, instruction 3 (phase): waits for flag 2" in str(caught.value)
