"""Proves that a schedule can run: to its end, without a race, computing each value exactly once.

The argument, which the checks below establish piece by piece:

- The program's order is topological: what a phase reads was written, whole, by phases before it (`verify_program`).
- Every queue follows that order, and every unit is in exactly one queue (`verify`). All SMs are resident, so of the
  unfinished instructions one that comes first in the order can always go on: no deadlock. At a barrier, which waits
  for its own phase, every SM has one unit, which announces itself before it waits. Instructions of the LM head, too,
  wait for each other where a draw is filtered, but each on an SM of its own: they can all be reached.
- Every value is written once a step by one unit, and buffers share no words: no two writers.
- Every unit has a result that a later phase reads, up to the one phase that chooses the next token. A unit publishes
  its results after its reads, so when the token is known, nobody reads a word of the step any more, and the next step,
  which begins with the token, may overwrite them: no race between steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jitmk.errors import ScheduleError
from jitmk.program.isa import OPERANDS, Opcode
from jitmk.program.program import MAX_CANDIDATES, WORD_ALIGNMENT, Buffer, BufferKind, Phase, Program
from jitmk.schedule.schedule import Schedule
from jitmk.schedule.spans import Intervals, PhaseSpans, merge, phase_spans


def verify(schedule: Schedule) -> None:
    """Proves a schedule and its program.

    Raises:
        ScheduleError: it would deadlock, race, or compute something twice or not at all; the message names phase,
            unit, SM or buffer.
    """
    verify_program(schedule.program)
    _check_queues(schedule)
    _check_order(schedule)
    _check_units(schedule)
    _check_barriers(schedule)
    _check_candidates(schedule)


def verify_program(program: Program) -> None:
    """Proves that the phases of a program can run in their order.

    Raises:
        ScheduleError: buffers overlap, something is read before it is written, or a value is written twice, never,
            or for nobody.
    """
    _check_arena(program)
    known = {buffer.name: buffer for buffer in program.buffers}
    for index, phase in enumerate(program.phases):
        _check_phase(program, known, index, phase)
    spans = [phase_spans(phase) for phase in program.phases]
    _check_bounds(program, spans)
    _check_reads(program, spans)
    _check_writes(program, spans)
    _check_results(program, spans)


def _check_arena(program: Program) -> None:
    names = [buffer.name for buffer in program.buffers]
    for name in set(names):
        if names.count(name) > 1:
            raise ScheduleError(f"the program has {names.count(name)} buffers with the name {name!r}; names are unique")
    end, before = 0, None
    for buffer in sorted(program.buffers, key=lambda b: b.offset):
        if buffer.offset % WORD_ALIGNMENT:
            raise ScheduleError(
                f"buffer {buffer.name!r} begins at word {buffer.offset}, which is no multiple of {WORD_ALIGNMENT}"
            )
        if buffer.offset < end:
            inside = f"inside buffer {before!r}, which ends at {end}" if before else "before the arena"
            raise ScheduleError(f"buffer {buffer.name!r} begins at word {buffer.offset}, {inside}")
        end, before = buffer.offset + buffer.total_words, buffer.name
    if end > program.arena_words:
        raise ScheduleError(f"buffer {before!r} ends at word {end}, but the arena has {program.arena_words}")


def _check_phase(program: Program, known: Mapping[str, Buffer], index: int, phase: Phase) -> None:
    if phase.index != index:
        raise ScheduleError(f"phase {phase.name!r} says that its index is {phase.index}, but it is {index}")
    if phase.units < 1:
        raise ScheduleError(f"phase {phase.name!r} has {phase.units} units; it needs at least one")
    if phase.variant not in program.variants:
        raise ScheduleError(f"phase {phase.name!r} needs the variant {phase.variant.name!r}, which the program lacks")
    for operand, buffer in phase.buffers.items():
        if operand not in OPERANDS[phase.variant.opcode]:
            raise ScheduleError(
                f"phase {phase.name!r}: {phase.variant.opcode.value} has no operand {operand!r}, "
                f"only {', '.join(OPERANDS[phase.variant.opcode])}"
            )
        if known.get(buffer.name) != buffer:
            raise ScheduleError(f"phase {phase.name!r}: buffer {buffer.name!r} is not one of the program's buffers")


def _check_bounds(program: Program, spans: list[PhaseSpans]) -> None:
    for phase, of_phase in zip(program.phases, spans, strict=True):
        for verb, by_operand in (("reads", of_phase.reads), ("writes", of_phase.writes)):
            for operand, intervals in by_operand.items():
                buffer = phase.buffers[operand]
                bad = (intervals.begin < 0) | (intervals.end > buffer.values) | (intervals.begin >= intervals.end)
                if bad.any():
                    raise ScheduleError(
                        f"{_interval(phase, intervals, int(bad.argmax()), verb, buffer)}, which has {buffer.values}"
                    )


def _check_reads(program: Program, spans: list[PhaseSpans]) -> None:
    """What a phase reads was written by the phases before it."""
    written: dict[str, list[Intervals]] = {}
    for phase, of_phase in zip(program.phases, spans, strict=True):
        for operand, intervals in of_phase.reads.items():
            buffer = phase.buffers[operand]
            covered = merge(written.get(buffer.name, [])).cover(intervals)
            if not covered.all():
                what = _interval(phase, intervals, int(covered.argmin()), "reads", buffer)
                raise ScheduleError(f"{what}, but the phases before it do not write all of that")
        for operand, intervals in of_phase.writes.items():
            written.setdefault(phase.buffers[operand].name, []).append(intervals)


def _check_writes(program: Program, spans: list[PhaseSpans]) -> None:
    """Every value of every buffer is written once."""
    writers: dict[str, list[tuple[Phase, Intervals]]] = {buffer.name: [] for buffer in program.buffers}
    for phase, of_phase in zip(program.phases, spans, strict=True):
        for operand, intervals in of_phase.writes.items():
            writers[phase.buffers[operand].name].append((phase, intervals))
    for buffer in program.buffers:
        parts = writers[buffer.name]
        if sum(int((part.end - part.begin).sum()) for _, part in parts) == buffer.values:
            runs = merge([part for _, part in parts])
            if len(runs.begin) == 1 and runs.begin[0] == 0 and runs.end[0] == buffer.values:
                continue  # As many values as the buffer has, and all of them: each once.
        raise ScheduleError(_explain_writes(buffer, parts))


def _explain_writes(buffer: Buffer, parts: list[tuple[Phase, Intervals]]) -> str:
    """Which value of a buffer is not written exactly once, and by whom."""
    entries = [
        (int(begin), int(end), phase.name, int(unit))
        for phase, part in parts
        for unit, begin, end in zip(part.unit, part.begin, part.end, strict=True)
    ]
    at, before = 0, ""
    for begin, end, phase_name, unit in sorted(entries):
        writer = f"phase {phase_name!r}, unit {unit}"
        if begin > at:
            return f"values {at} to {begin - 1} of buffer {buffer.name!r} are written by no unit"
        if begin < at:
            return f"value {begin} of buffer {buffer.name!r} is written twice: by {before}, and by {writer}"
        at, before = end, writer
    return f"values {at} to {buffer.values - 1} of buffer {buffer.name!r} are written by no unit"


_WITHOUT_RESULT = (Opcode.BARRIER, Opcode.NO_OP)
"""Opcodes whose units nobody needs a result of: a no-op reads nothing, and to a barrier a later epoch is as good."""


def _check_results(program: Program, spans: list[PhaseSpans]) -> None:
    """Every unit has a result that a later phase reads; the last phase, which chooses the token, has none."""
    read: dict[str, list[Intervals]] = {}
    for phase, of_phase in zip(reversed(program.phases), reversed(spans), strict=True):
        used = np.zeros(phase.units, dtype=np.bool_)
        for operand, intervals in of_phase.writes.items():
            touched = merge(read.get(phase.buffers[operand].name, [])).touch(intervals)
            used[intervals.unit[touched]] = True
        if phase is program.phases[-1]:
            if phase.variant.opcode is not Opcode.SAMPLE:
                raise ScheduleError(f"the last phase is {phase.name!r}; a step ends with a {Opcode.SAMPLE.value}")
        elif phase.variant.opcode not in _WITHOUT_RESULT and not used.all():
            raise ScheduleError(
                f"phase {phase.name!r}, unit {int(used.argmin())}: no later phase reads a result of it, so the next "
                "step could overwrite what it still reads"
            )
        for operand, intervals in of_phase.reads.items():
            read.setdefault(phase.buffers[operand].name, []).append(intervals)


def _interval(phase: Phase, intervals: Intervals, i: int, verb: str, buffer: Buffer) -> str:
    begin, end = int(intervals.begin[i]), int(intervals.end[i])
    return (
        f"phase {phase.name!r} ({phase.index}), unit {int(intervals.unit[i])} {verb} values {begin} to {end - 1} of "
        f"buffer {buffer.name!r}"
    )


def _check_queues(schedule: Schedule) -> None:
    """Assignments lie within their phases."""
    if len(schedule.queues) != schedule.sms:
        raise ScheduleError(f"the schedule is for {schedule.sms} SMs, but has {len(schedule.queues)} queues")
    table, phases = schedule.table, schedule.program.phases
    units = np.array([phase.units for phase in phases], dtype=np.int64)
    known = (table.phase >= 0) & (table.phase < len(phases))
    if not known.all():
        i = int(known.argmin())
        raise ScheduleError(
            f"{_where(schedule, i)}: there is no phase {table.phase[i]}; phases are 0 to {len(phases) - 1}"
        )
    last = table.unit_begin + (table.unit_count - 1) * table.unit_stride
    inside = (table.unit_begin >= 0) & (table.unit_count >= 1) & (table.unit_stride >= 1) & (last < units[table.phase])
    if not inside.all():
        i = int(inside.argmin())
        phase = phases[table.phase[i]]
        raise ScheduleError(
            f"{_where(schedule, i)}, phase {phase.name!r}: {table.unit_count[i]} units from {table.unit_begin[i]} on "
            f"in steps of {table.unit_stride[i]} do not lie within the phase's units 0 to {phase.units - 1}"
        )


def _check_order(schedule: Schedule) -> None:
    """Every queue follows the program's order."""
    table, phases = schedule.table, schedule.program.phases
    back = (table.phase[1:] < table.phase[:-1]) & (table.place[1:] > 0)
    if back.any():
        i = int(back.argmax()) + 1
        raise ScheduleError(
            f"{_where(schedule, i)}: phase {phases[table.phase[i]].name!r} ({table.phase[i]}) comes after phase "
            f"{phases[table.phase[i - 1]].name!r} ({table.phase[i - 1]}); a queue that leaves the program's order can "
            "deadlock"
        )


def _check_units(schedule: Schedule) -> None:
    """Every unit of every phase is in exactly one place."""
    table, phases = schedule.table, schedule.program.phases
    units = np.array([phase.units for phase in phases], dtype=np.int64)
    offset = units.cumsum() - units
    row = np.repeat(np.arange(len(table.phase)), table.unit_count)
    step = np.arange(len(row)) - (table.unit_count.cumsum() - table.unit_count)[row]
    place = offset[table.phase[row]] + table.unit_begin[row] + step * table.unit_stride[row]
    times = np.bincount(place, minlength=int(units.sum()))
    if (times == 1).all():
        return
    wrong = int((times != 1).argmax())
    phase = phases[int(np.searchsorted(offset, wrong, side="right")) - 1]
    unit = wrong - int(offset[phase.index])
    if times[wrong] == 0:
        raise ScheduleError(f"phase {phase.name!r} ({phase.index}): unit {unit} is in no queue")
    sms = sorted(table.sm[row[place == wrong]].tolist())
    raise ScheduleError(
        f"phase {phase.name!r} ({phase.index}): unit {unit} is computed {times[wrong]} times, on SMs "
        f"{', '.join(map(str, sms))}"
    )


def _check_barriers(schedule: Schedule) -> None:
    """Every SM comes to every barrier, once: unit i is SM i's."""
    table = schedule.table
    for phase in schedule.program.phases:
        if phase.variant.opcode is not Opcode.BARRIER:
            continue
        if phase.units != schedule.sms:
            raise ScheduleError(
                f"phase {phase.name!r} ({phase.index}) is a barrier of {phase.units} SMs, but the schedule is for "
                f"{schedule.sms}; make the program with `with_barriers(program, {schedule.sms})`"
            )
        mine = table.phase == phase.index
        wrong = table.unit_begin[mine] != table.sm[mine]
        if len(wrong) != schedule.sms or wrong.any():
            sm = int(table.sm[mine][wrong.argmax()])
            raise ScheduleError(
                f"phase {phase.name!r} ({phase.index}): SM {sm} has unit {int(table.unit_begin[mine][wrong.argmax()])} "
                "of the barrier; unit i belongs on SM i, or SMs would wait for each other forever"
            )


def _check_candidates(schedule: Schedule) -> None:
    """The candidates of the LM head's instructions fit their buffer, and no SM has two of these instructions: they wait
    for each other where a draw is filtered."""
    instructions = np.bincount(schedule.table.phase, minlength=len(schedule.program.phases))
    for phase in schedule.program.phases:
        output = phase.buffers.get("output")
        if output is None or output.kind is not BufferKind.CANDIDATE:
            continue
        if instructions[phase.index] > MAX_CANDIDATES:
            raise ScheduleError(
                f"phase {phase.name!r} ({phase.index}) is dealt in {instructions[phase.index]} instructions, but "
                f"buffer {output.name!r} holds {MAX_CANDIDATES} candidates"
            )
        on_sm = np.bincount(schedule.table.sm[schedule.table.phase == phase.index], minlength=1)
        if on_sm.max() > 1:
            raise ScheduleError(
                f"phase {phase.name!r} ({phase.index}) is dealt in {on_sm.max()} instructions on SM {on_sm.argmax()}; "
                "instructions that offer candidates wait for each other, so an SM can have one of them at most"
            )


def _where(schedule: Schedule, row: int) -> str:
    table = schedule.table
    return f"SM {table.sm[row]}, instruction {table.place[row]}"
