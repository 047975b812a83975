from __future__ import annotations

from dataclasses import replace

import pytest

from jitmk.errors import ScheduleError
from jitmk.program.isa import Instruction
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from jitmk.reference.work import Resolver, candidate_words
from jitmk.schedule.build import make_schedule
from jitmk.schedule.encode import decode, encode
from tests.support.programs import phase_index
from tests.support.tiny import tiny_spec

SPEC = tiny_spec()
PLAN = plan_weights(SPEC)
PROGRAM = lower(SPEC, splits=2)


def instruction(name: str, sms: int = 2) -> tuple[Instruction, int]:
    """An instruction of a phase, and its SM."""
    queues = decode(encode(make_schedule(PROGRAM, sms), PLAN, PROGRAM.variants), PROGRAM.variants)
    phase = phase_index(PROGRAM, name)
    return next((i, sm) for sm, queue in enumerate(queues) for i in queue if i.phase == phase)


def test_an_input_is_read_once_from_the_sms_copy() -> None:
    qkv, _ = instruction("layers.0.qkv")
    phase = PROGRAM.phases[qkv.phase]
    buffer = phase.buffers["input"]
    for sm in range(3):
        work = Resolver(PLAN).work(qkv, phase, sm)
        (read,) = work.units[0].reads
        first = buffer.offset + sm % 2 * buffer.copy_stride
        assert read.words == (slice(first, first + SPEC.hidden_size // 2),)
        assert all(not unit.reads for unit in work.units[1:])


def test_every_copy_is_written() -> None:
    embed, sm = instruction("embed")
    work = Resolver(PLAN).work(embed, PROGRAM.phases[0], sm)
    output, residual = work.units[0].writes
    assert (len(output.words), len(residual.words)) == (2, 1)
    assert [words.stop - words.start for words in (*output.words, *residual.words)] == [4, 4, 8]


def test_weights_are_what_the_operands_say() -> None:
    down, sm = instruction("layers.1.down")
    phase = PROGRAM.phases[down.phase]
    other = replace(down, operands={**down.operands, "weights": PLAN.matrices["layers.0.down"].grain})
    assert Resolver(PLAN).work(other, phase, sm).phase.weights == "layers.0.down"
    nowhere = replace(down, operands={**down.operands, "weights": down.operands["weights"] + 1})
    with pytest.raises(ScheduleError, match=r"phase 'layers\.1\.down': the operand 'weights' is \d+, where nothing"):
        Resolver(PLAN).work(nowhere, phase, sm)


def test_candidates_lie_two_words_apart() -> None:
    head, _ = instruction("lm_head")
    start = PROGRAM.phases[head.phase].buffers["output"].offset + 2 * head.operands["candidate"]
    assert candidate_words(head) == slice(start, start + 2)
