from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.arch import GpuArch
from jitmk.errors import ConfigError
from jitmk.program.fusion import Fusion
from jitmk.program.lowering import lower
from jitmk.program.program import Program
from jitmk.schedule.build import make_schedule
from jitmk.schedule.policies import POLICIES
from jitmk.schedule.policies.listing import fill_levels
from jitmk.schedule.schedule import Schedule
from jitmk.schedule.verify import verify
from tests.support.programs import branching_program, phase_index
from tests.support.tiny import tiny_spec


def programs() -> dict[str, Program]:
    return {
        "plain": lower(tiny_spec()),
        "split": lower(tiny_spec(num_heads=16, num_kv_heads=1), splits=5),
        "wide": lower(tiny_spec(vocab_size=3000, num_layers=1)),
        "branching": branching_program(),
    }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", programs())
@pytest.mark.parametrize("sms", [1, 2, 3, 7, 132, 500])
def test_schedules_are_sound(policy: str, name: str, sms: int) -> None:
    schedule = make_schedule(programs()[name], sms, policy)
    verify(schedule)
    assert len(schedule.queues) == schedule.sms == sms and schedule.policy == policy
    for queue in schedule.queues:
        phases = [assignment.phase for assignment in queue]
        assert len(set(phases)) == len(phases), "one instruction for a phase on an SM"


@pytest.mark.parametrize("policy", ["round_robin", "zigzag", "wave"])
def test_even_policies_deal_evenly(policy: str) -> None:
    schedule = make_schedule(programs()["wide"], 7, policy)
    for phase in schedule.program.phases:
        counts = [sum(a.unit_count for a in queue if a.phase == phase.index) for queue in schedule.queues]
        assert max(counts) - min(counts) <= 1


def sms_of(program: Program, sms: int, policy: str, phase: int) -> list[int]:
    """The SM of each unit of a phase."""
    owner = {
        unit: sm
        for sm, queue in enumerate(make_schedule(program, sms, policy).queues)
        for assignment in queue
        if assignment.phase == phase
        for unit in assignment.units
    }
    return [owner[unit] for unit in range(len(owner))]


def test_round_robin_goes_on_where_it_ended() -> None:
    program, sms, expected = programs()["plain"], 5, 0
    for phase in program.phases:
        owners = sms_of(program, sms, "round_robin", phase.index)
        assert owners == [(expected + unit) % sms for unit in range(phase.units)]
        expected = (owners[-1] + 1) % sms


def counts_of(schedule: Schedule, name: str) -> list[int]:
    """Units of a phase on each SM."""
    index = phase_index(schedule.program, name)
    return [sum(a.unit_count for a in queue if a.phase == index) for queue in schedule.queues]


def test_level_makes_up_for_an_uneven_phase() -> None:
    """Down has 12 units for 8 SMs: those with two of them have fewer bytes of gate_up, by 0.7 of a unit of down."""
    program = lower(tiny_spec(hidden_size=96, intermediate_size=1024, num_layers=2))
    schedule = make_schedule(program, 8, "level")
    verify(schedule)
    for layer in range(2):
        down, gate_up = (counts_of(schedule, f"layers.{layer}.{name}") for name in ("down", "gate_up"))
        assert sorted(down) == [1] * 4 + [2] * 4
        few, many = ({g for d, g in zip(down, gate_up, strict=True) if d == units} for units in (2, 1))
        unit_bytes = [16 * 96, 16 * 1024]  # of gate_up, of down
        (less,) = {round(max(many)) - round(max(few))}
        assert max(few) < min(many)
        assert abs(less * unit_bytes[0] - 0.7 * unit_bytes[1]) <= unit_bytes[0]


def test_level_is_round_robin_where_phases_come_out_even() -> None:
    program = lower(tiny_spec(hidden_size=256, intermediate_size=1024, num_layers=2, num_kv_heads=2))
    level, plain = (make_schedule(program, 8, policy) for policy in ("level", "round_robin"))
    names = ("qkv", "o_proj", "gate_up", "down")
    for name in names:
        assert counts_of(level, f"layers.1.{name}") == counts_of(plain, f"layers.1.{name}")


def test_who_attends_gets_nothing_of_the_next_projection_if_that_costs_nobody_more() -> None:
    program = lower(tiny_spec(hidden_size=96, num_layers=1, num_kv_heads=1, num_heads=1))
    for sms, excluded in ((8, True), (6, False), (1, False)):  # 12 units: two each on 7 SMs, but not on 5
        schedule = make_schedule(program, sms, "level")
        (attending,) = [sm for sm, count in enumerate(counts_of(schedule, "layers.0.attention")) if count]
        counts = counts_of(schedule, "layers.0.o_proj")
        assert (counts[attending] == 0) == excluded and sum(counts) == 12
        assert max(counts) == -(-12 // sms)


def test_both_rules_may_hold_for_a_phase() -> None:
    """O_proj behind attention, with many units, before a projection with a large remainder."""
    program = lower(tiny_spec(hidden_size=2560, intermediate_size=112, num_layers=1, num_heads=1, num_kv_heads=1))
    schedule = make_schedule(program, 20, "level")  # 320 units of o_proj are 16 each, or 17 on 19 SMs; gate_up has 28
    verify(schedule)
    o_proj, gate_up = (counts_of(schedule, f"layers.0.{name}") for name in ("o_proj", "gate_up"))
    assert sorted(gate_up) == [1] * 12 + [2] * 8
    program = lower(tiny_spec(hidden_size=2432, intermediate_size=112, num_layers=1, num_heads=1, num_kv_heads=1))
    schedule = make_schedule(program, 20, "level")  # 304 units: 16 at most, on 20 SMs as on 19
    verify(schedule)
    o_proj, gate_up = (counts_of(schedule, f"layers.0.{name}") for name in ("o_proj", "gate_up"))
    attending = counts_of(schedule, "layers.0.attention").index(1)
    assert o_proj[attending] == 0 and sum(o_proj) == 304
    others = [(o, g) for sm, (o, g) in enumerate(zip(o_proj, gate_up, strict=True)) if sm != attending]
    assert max(o for o, g in others if g == 2) <= min(o for o, g in others if g == 1)


@pytest.mark.parametrize(("hidden", "sms", "apart"), [(64, 20, True), (64, 19, False), (1040, 24, False)])
def test_where_steps_are_all_latency_some_sms_do_nothing_but_attend(hidden: int, sms: int, apart: bool) -> None:
    """Four units of attention: a fifth of 20 SMs."""
    program = lower(tiny_spec(hidden_size=hidden, num_kv_heads=2), splits=2, fused=Fusion(merge=False))
    schedule = make_schedule(program, sms, "level")
    verify(schedule)
    attending = [{sm for sm, n in enumerate(counts_of(schedule, f"layers.{i}.attention")) if n} for i in range(2)]
    busy = [
        {sm for sm, n in enumerate(counts_of(schedule, f"layers.{i}.{name}")) if n}
        for i in range(2)
        for name in ("qkv", "o_proj", "gate_up", "down")
    ]
    assert (attending == [set(range(sms - 4, sms))] * 2 and not any(b & attending[0] for b in busy)) == apart
    merging = {sm for sm, n in enumerate(counts_of(schedule, "layers.0.attention_reduce")) if n}
    assert merging <= attending[0] or not apart
    assert any(b & attending[0] for b in busy) != apart


def test_sms_that_attend_help_where_others_would_need_another_round() -> None:
    """22 units of o_proj and down for 24 SMs, of which 4 attend; of gate_up, which is the warps' own, 20 do as well."""
    program = lower(tiny_spec(hidden_size=176, intermediate_size=400, num_kv_heads=2), splits=2)
    schedule = make_schedule(program, 24, "level")
    for name in ("o_proj", "down"):
        assert counts_of(schedule, f"layers.1.{name}") == [1] * 22 + [0] * 2, "no more of them than are needed"
    assert counts_of(schedule, "layers.1.gate_up") == [5] * 20 + [0] * 4


def test_zigzag_turns_round() -> None:
    program = programs()["plain"]
    assert sms_of(program, 5, "zigzag", 0) == [0, 1, 2, 3, 4, 0, 1, 2]
    assert sms_of(program, 5, "zigzag", 1)[:6] == [4, 3, 2, 1, 0, 4]


def test_wave_is_contiguous_and_spreads() -> None:
    program = programs()["plain"]
    owners = sms_of(program, 3, "wave", 1)
    assert owners == sorted(owners)
    assert sms_of(program, 8, "wave", phase_index(program, "layers.0.attention")) == [3, 7]


def test_list_uses_the_sms_that_a_branch_leaves_free() -> None:
    program = branching_program()
    left, right = (sms_of(program, 4, "list", phase_index(program, side)) for side in ("left", "right"))
    assert len({*left, *right}) == 4, "two units on each side, four SMs"


def test_list_evens_out_what_attention_cost() -> None:
    """With a long context the SMs that attend get fewer units of the phases after it."""
    program = lower(tiny_spec(num_layers=1, num_kv_heads=1))
    schedule = make_schedule(program, 4, "list", context=65536)
    attending = sms_of(program, 4, "list", phase_index(program, "layers.0.attention"))
    after = phase_index(program, "layers.0.o_proj")
    counts = [sum(a.unit_count for a in queue if a.phase == after) for queue in schedule.queues]
    assert len(attending) == 1 and sum(counts) == program.phases[after].units
    (busy,) = {
        sm
        for sm, queue in enumerate(schedule.queues)
        for a in queue
        if program.phases[a.phase].name.endswith("attention")
    }
    assert counts[busy] < max(counts)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=12),
    st.floats(0.01, 50),
    st.integers(1, 60),
)
def test_fill_levels_is_list_scheduling(start: list[float], unit: float, units: int) -> None:
    counts = fill_levels(start, unit, units)
    heap = [(at, sm) for sm, at in enumerate(start)]
    heapq.heapify(heap)
    for _ in range(units):
        at, sm = heapq.heappop(heap)
        heapq.heappush(heap, (at + unit, sm))
    assert sum(counts) == units and min(counts) >= 0
    finish = max(at + count * unit for at, count in zip(start, counts, strict=True) if count)
    one_by_one = max(at for at, sm in heap if at > start[sm])
    assert finish == pytest.approx(one_by_one)


@pytest.mark.parametrize("context", [64, 65536])
def test_pool_keeps_streaming_and_waiting_apart(context: int) -> None:
    program = lower(tiny_spec(hidden_size=1024, intermediate_size=4096, num_layers=1, vocab_size=20000))
    schedule = make_schedule(program, 16, "pool", context=context)
    sms: dict[str, set[int]] = {}
    for sm, queue in enumerate(schedule.queues):
        for assignment in queue:
            sms.setdefault(program.phases[assignment.phase].name, set()).add(sm)
    streaming = sms["lm_head"] | sms["layers.0.gate_up"]
    assert len(streaming) > 12
    assert streaming.isdisjoint(sms["embed"] | sms["sample"])
    # Attention waits more than it streams while the context is short.
    assert streaming.isdisjoint(sms["layers.0.attention"]) == (context == 64)


def test_an_arch_gives_its_sms() -> None:
    assert make_schedule(programs()["plain"], GpuArch.parse("sm_90a")).sms == 132


def test_bad_requests_are_refused() -> None:
    program = programs()["plain"]
    with pytest.raises(ConfigError, match="no schedule policy 'fastest'; policies are level, list, pool"):
        make_schedule(program, 4, "fastest")
    with pytest.raises(ConfigError, match="sms = 0"):
        make_schedule(program, 0)
