from __future__ import annotations

from dataclasses import replace

import pytest

from jitmk.errors import ConfigError, ScheduleError
from jitmk.program.barriers import with_barriers
from jitmk.program.configs import AttentionConfig, NoOpConfig, ZeroConfig
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.program.program import MAX_CANDIDATES, Buffer, BufferKind, Phase, Program, Variant
from jitmk.schedule.build import make_schedule
from jitmk.schedule.schedule import Assignment, Schedule
from jitmk.schedule.verify import verify, verify_program
from tests.support.features import FEATURES, feature_spec
from tests.support.programs import branching_program, phase_index, place_of, with_phase, with_queue
from tests.support.tiny import tiny_spec


def schedule() -> Schedule:
    return make_schedule(lower(tiny_spec(), splits=2), 5)


def test_swapped_instructions() -> None:
    good = schedule()
    queue = list(good.queues[3])
    queue[0], queue[1] = queue[1], queue[0]
    with pytest.raises(ScheduleError, match=r"SM 3, instruction 1: phase 'embed' \(0\) comes after .*'layers\.0\.qkv'"):
        verify(with_queue(good, 3, queue))


def test_missing_unit() -> None:
    good = schedule()
    phase = phase_index(good.program, "layers.1.gate_up")
    sm, place = place_of(good, phase)
    queue = list(good.queues[sm])
    left_out = queue[place].unit_begin
    queue[place] = replace(
        queue[place], unit_begin=left_out + queue[place].unit_stride, unit_count=queue[place].unit_count - 1
    )
    with pytest.raises(ScheduleError, match=rf"'layers\.1\.gate_up' \(\d+\): unit {left_out} is in no queue"):
        verify(with_queue(good, sm, queue))


def test_duplicated_unit() -> None:
    good = schedule()
    phase = phase_index(good.program, "layers.0.down")
    sm, place = place_of(good, phase)
    other = (sm + 1) % 5
    queue = sorted([*good.queues[other], replace(good.queues[sm][place], unit_count=1)], key=lambda a: a.phase)
    with pytest.raises(ScheduleError, match=rf"'layers\.0\.down' .*computed 2 times, on SMs {min(sm, other)}, "):
        verify(with_queue(good, other, queue))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (Assignment(99, 0, 1, 1), "there is no phase 99"),
        (Assignment(0, 5, 4, 1), "4 units from 5 on in steps of 1"),
        (Assignment(0, 0, 2, 8), "2 units from 0 on in steps of 8"),
        (Assignment(0, 0, 0, 1), "0 units from 0"),
        (Assignment(0, -1, 1, 1), "1 units from -1"),
        (Assignment(0, 0, 1, 0), "in steps of 0"),
    ],
)
def test_assignments_outside_their_phase(assignment: Assignment, message: str) -> None:
    good = schedule()
    with pytest.raises(ScheduleError, match=message):
        verify(with_queue(good, 2, [assignment, *good.queues[2]]))


def test_number_of_queues() -> None:
    good = schedule()
    with pytest.raises(ScheduleError, match="for 5 SMs, but has 4 queues"):
        verify(replace(good, queues=good.queues[:4]))


def test_too_many_candidates() -> None:
    program = lower(tiny_spec(num_layers=1, vocab_size=8 * (MAX_CANDIDATES + 1)))
    verify(make_schedule(program, MAX_CANDIDATES))
    with pytest.raises(ScheduleError, match="dealt in 1025 instructions"):
        verify(make_schedule(program, MAX_CANDIDATES + 1))


def test_two_instructions_of_the_head_on_one_sm() -> None:
    """They would wait for each other where a draw is filtered."""
    whole = make_schedule(lower(tiny_spec(num_layers=1)), 3)
    head = phase_index(whole.program, "lm_head")
    sm, place = place_of(whole, head)
    queue = list(whole.queues[sm])
    a = queue[place]
    half = a.unit_count // 2
    assert half
    queue[place : place + 1] = [
        Assignment(head, a.unit_begin, half, a.unit_stride),
        Assignment(head, a.unit_begin + half * a.unit_stride, a.unit_count - half, a.unit_stride),
    ]
    with pytest.raises(ScheduleError, match=rf"'lm_head' .* in 2 instructions on SM {sm}; .*one of them at most"):
        verify(with_queue(whole, sm, queue))


def with_buffer(program: Program, buffer: Buffer) -> Program:
    """The program with a buffer of that name replaced everywhere."""

    def moved(phase: Phase) -> Phase:
        buffers = {operand: buffer if b.name == buffer.name else b for operand, b in phase.buffers.items()}
        return replace(phase, buffers=buffers)

    buffers = tuple(buffer if b.name == buffer.name else b for b in program.buffers)
    return replace(program, phases=tuple(map(moved, program.phases)), buffers=buffers)


def test_branching_programs_are_sound() -> None:
    verify_program(branching_program())


def test_buffers_that_overlap() -> None:
    program = branching_program()
    right, left = (next(b for b in program.buffers if b.name == name) for name in ("right", "left"))
    with pytest.raises(ScheduleError, match=r"buffer 'right' begins at word .* inside buffer 'left'"):
        verify_program(with_buffer(program, replace(right, offset=left.offset)))
    with pytest.raises(ScheduleError, match="which is no multiple of 32"):
        verify_program(with_buffer(program, replace(right, offset=right.offset + 1)))
    with pytest.raises(ScheduleError, match=r"buffer 'head' ends at word \d+, but the arena has 100"):
        verify_program(replace(program, arena_words=100))
    with pytest.raises(ScheduleError, match="2 buffers with the name 'left'"):
        verify_program(replace(program, buffers=(*program.buffers, left)))


def test_reading_before_writing() -> None:
    program = branching_program()
    swapped = list(program.phases)
    swapped[2], swapped[4] = replace(swapped[4], index=2), replace(swapped[2], index=4)
    message = r"'join_right' \(2\), unit 0 reads values 0 to 15 of buffer 'right', but the phases before"
    with pytest.raises(ScheduleError, match=message):
        verify_program(replace(program, phases=tuple(swapped)))


def test_writing_twice() -> None:
    program = branching_program()
    right = program.phases[2]
    twice = replace(right, buffers={**right.buffers, "output": program.phases[1].buffers["output"]})
    join = program.phases[4]
    spoiled = with_phase(program, 2, twice)
    spoiled = with_phase(spoiled, 4, replace(join, buffers={**join.buffers, "input": twice.buffers["output"]}))
    message = "value 0 of buffer 'left' is written twice: by phase 'left', unit 0, and by phase 'right', unit 0"
    with pytest.raises(ScheduleError, match=message):
        verify_program(spoiled)


def test_values_that_nobody_writes() -> None:
    program = branching_program()
    half = replace(program.phases[2], units=1)
    join = program.phases[4]  # which must not read the other half
    join = replace(join, buffers={**join.buffers, "input": program.phases[1].buffers["output"]})
    with pytest.raises(ScheduleError, match="values 8 to 15 of buffer 'right' are written by no unit"):
        verify_program(with_phase(with_phase(program, 2, half), 4, join))


def test_units_that_nobody_waits_for() -> None:
    """What nobody needs may still be running when the next step overwrites what it reads."""
    program = branching_program()
    join = program.phases[4]
    ignored = with_phase(
        program, 4, replace(join, buffers={**join.buffers, "input": program.phases[1].buffers["output"]})
    )
    with pytest.raises(ScheduleError, match="phase 'right', unit 0: no later phase reads a result of it"):
        verify_program(ignored)


def test_a_step_ends_with_a_token() -> None:
    program = branching_program()
    with pytest.raises(ScheduleError, match="a step ends with a sample"):
        verify_program(replace(program, phases=program.phases[:-1]))


def test_phases_that_contradict_the_program() -> None:
    program = branching_program()
    with pytest.raises(ScheduleError, match="says that its index is 3, but it is 2"):
        verify_program(with_phase(program, 2, replace(program.phases[2], index=3)))
    with pytest.raises(ScheduleError, match="has 0 units"):
        verify_program(with_phase(program, 2, replace(program.phases[2], units=0)))
    with pytest.raises(ScheduleError, match="needs the variant 'side', which the program lacks"):
        verify_program(replace(program, variants=program.variants[:1]))
    stranger = replace(program.phases[2].buffers["output"], values=17)
    phase = replace(program.phases[2], buffers={**program.phases[2].buffers, "output": stranger})
    with pytest.raises(ScheduleError, match="buffer 'right' is not one of the program's buffers"):
        verify_program(with_phase(program, 2, phase))
    wrong = replace(program.phases[0], buffers={**program.phases[0].buffers, "input": stranger})
    with pytest.raises(ScheduleError, match="embed has no operand 'input'"):
        verify_program(with_phase(program, 0, wrong))


def test_values_outside_a_buffer() -> None:
    program = branching_program()
    with pytest.raises(ScheduleError, match=r"'left' \(1\), unit 2 writes values 16 to 15 of buffer 'left', which has"):
        verify_program(with_phase(program, 1, replace(program.phases[1], units=3)))


def unfused() -> Program:
    return lower(feature_spec("two-ropes"), splits=2, fused=False)


def without(program: Program, name: str) -> Program:
    """The program with a phase left out."""
    left = [phase for phase in program.phases if phase.name != name]
    assert len(left) == len(program.phases) - 1
    return replace(program, phases=tuple(replace(phase, index=index) for index, phase in enumerate(left)))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_phases_that_are_left_out(name: str, fused: bool) -> None:
    """Whichever phase is missing, somebody misses what it writes; without the last one, there is no token."""
    program = lower(feature_spec(name), splits=2, fused=fused)
    verify_program(program)
    for phase in program.phases:
        with pytest.raises(ScheduleError):
            verify_program(without(program, phase.name))


def test_attention_before_the_append() -> None:
    program = unfused()
    append, attend = (phase_index(program, f"layers.0.{name}") for name in ("kv_append", "attention"))
    assert attend == append + 1
    swapped = with_phase(program, append, replace(program.phases[attend], index=append))
    swapped = with_phase(swapped, attend, replace(program.phases[append], index=attend))
    with pytest.raises(ScheduleError, match=r"reads values 0 to 0 of buffer 'layers\.0\.kv_append\.output', but"):
        verify_program(swapped)


def test_an_append_that_nobody_waits_for() -> None:
    program = unfused()
    index = phase_index(program, "layers.0.attention")
    attention = program.phases[index]
    config = attention.variant.config
    assert isinstance(config, AttentionConfig)
    careless = Variant("careless", attention.variant.opcode, replace(config, append=True))
    spoiled = with_phase(program, index, replace(attention, variant=careless))
    with pytest.raises(ScheduleError, match=r"'layers\.0\.kv_append', unit 0: no later phase reads a result"):
        verify_program(replace(spoiled, variants=(*program.variants, careless)))


def test_norms_of_the_wrong_heads() -> None:
    program = unfused()
    index = phase_index(program, "layers.0.k_norm")
    early = replace(program.phases[index], numbers={"first": 192})
    message = r"'layers\.0\.rope' \(\d+\), unit 5 reads values 320 to 383 of buffer 'layers\.0\.qk_norm\.output', but"
    with pytest.raises(ScheduleError, match=message):
        verify_program(with_phase(program, index, early))


def with_no_op(program: Program) -> Program:
    variant = Variant("no_op", Opcode.NO_OP, NoOpConfig())
    phases = [Phase(0, "nothing", variant, 3), *program.phases]
    numbered = tuple(replace(phase, index=index) for index, phase in enumerate(phases))
    return replace(program, phases=numbered, variants=(*program.variants, variant))


def test_no_ops_need_no_reader() -> None:
    verify(make_schedule(with_no_op(branching_program()), 4))


def test_zeros_need_one() -> None:
    program = branching_program()
    buffer = Buffer("zeros", BufferKind.BF16, 300, 1, 1, program.arena_words)
    variant = Variant("zero", Opcode.ZERO, ZeroConfig(300, 1))
    zero = Phase(0, "zero", variant, 2, buffers={"output": buffer})
    phases = tuple(replace(phase, index=index) for index, phase in enumerate((zero, *program.phases)))
    spoiled = replace(
        program,
        phases=phases,
        buffers=(*program.buffers, buffer),
        variants=(*program.variants, variant),
        arena_words=program.arena_words + buffer.total_words,
    )
    with pytest.raises(ScheduleError, match="phase 'zero', unit 0: no later phase reads a result"):
        verify_program(spoiled)


def test_barriers_of_another_gpu() -> None:
    program = with_barriers(branching_program(), 4)
    verify(make_schedule(program, 4))
    with pytest.raises(ConfigError, match=r"'embed\.barrier' is a barrier of 4 SMs, but the schedule is for 5"):
        make_schedule(program, 5)
    wide = replace(make_schedule(program, 4), sms=5, queues=(*make_schedule(program, 4).queues, ()))
    with pytest.raises(
        ScheduleError, match=r"barrier of 4 SMs, but the schedule is for 5; .*with_barriers\(program, 5"
    ):
        verify(wide)


def test_barriers_on_the_wrong_sm() -> None:
    good = make_schedule(with_barriers(branching_program(), 2), 2)
    barrier = phase_index(good.program, "embed.barrier")

    def swapped(sm: int) -> list[Assignment]:
        unit = 1 - sm
        return [replace(a, unit_begin=unit) if a.phase == barrier else a for a in good.queues[sm]]

    with pytest.raises(ScheduleError, match="SM 0 has unit 1 of the barrier"):
        verify(with_queue(with_queue(good, 0, swapped(0)), 1, swapped(1)))
    queue = [replace(a, unit_count=2) if a.phase == barrier else a for a in good.queues[0]]
    other = [a for a in good.queues[1] if a.phase != barrier]
    with pytest.raises(ScheduleError, match="unit i belongs on SM i"):
        verify(with_queue(with_queue(good, 0, queue), 1, other))
