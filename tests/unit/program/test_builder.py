from __future__ import annotations

import pytest
import torch

from jitmk.program.builder import ProgramBuilder
from jitmk.program.configs import NoOpConfig, ZeroConfig
from jitmk.program.isa import Opcode
from jitmk.program.program import WORD_ALIGNMENT, BufferKind


def test_buffers_lie_one_behind_the_other() -> None:
    b = ProgramBuilder(1)
    first, second, third = b.bf16("first", 70, 2), b.fp32("second", 5), b.buffer("third", BufferKind.CANDIDATE, 9)
    assert (first.kind, second.kind) == (BufferKind.BF16, BufferKind.FP32)
    assert [first.offset, second.offset] == [0, 2 * 2 * WORD_ALIGNMENT]
    assert third.offset == second.offset + WORD_ALIGNMENT
    assert b.finish(1).arena_words == third.offset + third.total_words


@pytest.mark.parametrize("spread", [1, 4])
def test_sectors_of_a_buffer_lie_as_far_apart_as_it_says(spread: int) -> None:
    b = ProgramBuilder(1, spread)
    first, second = b.bf16("first", 70, 2), b.bf16("second", 16)
    here, copy = first.places(), first.places(1)
    assert here[:6].tolist() == [0, 1, 2, 3, 4 * spread, 4 * spread + 1] and len(here) == 35
    assert torch.equal(copy - here, torch.full((35,), first.copy_stride))
    every = torch.cat((here, copy, second.places()))
    assert len(set(every.tolist())) == len(every) and int(copy.max()) < second.offset
    assert int(every.max()) < b.finish(1).arena_words
    assert [b.heads("heads", 16).spread, b.fp32("sum", 16).spread, b.logarithms("lse", 3).spread] == [1, 1, spread]


def test_variants_of_one_name_are_numbered_and_shared() -> None:
    b = ProgramBuilder(1)
    for values in (8, 16, 8):
        b.phase(f"zero{values}", "zero", Opcode.ZERO, ZeroConfig(values, 1), 1, {})
    b.phase("nothing", "no_op", Opcode.NO_OP, NoOpConfig(), 1, {})
    program = b.finish(1)
    assert [variant.name for variant in program.variants] == ["zero", "zero_2", "no_op"]
    assert [phase.variant.name for phase in program.phases] == ["zero", "zero_2", "zero", "no_op"]
    assert [phase.index for phase in program.phases] == [0, 1, 2, 3]
