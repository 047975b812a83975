from __future__ import annotations

from jitmk.program.barriers import with_barriers
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.schedule.verify import verify_program
from tests.support.tiny import tiny_spec


def test_a_barrier_behind_every_phase_but_the_last() -> None:
    plain = lower(tiny_spec(), splits=2)
    program = with_barriers(plain, 7)
    verify_program(program)
    barriers = [phase for phase in program.phases if phase.variant.opcode is Opcode.BARRIER]
    assert [phase.name for phase in program.phases if phase not in barriers] == [phase.name for phase in plain.phases]
    assert [phase.index for phase in barriers] == list(range(1, 2 * len(plain.phases) - 1, 2))
    assert all(phase.units == 7 and phase.buffers["output"].values == 7 for phase in barriers)
    assert len({phase.buffers["output"].offset for phase in barriers}) == len(barriers)
    assert len(program.variants) == len(plain.variants) + 1
