from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitmk.program.isa import (
    HEADER,
    INSTRUCTION_WORDS,
    OPERANDS,
    Instruction,
    Opcode,
    decode,
    end_of_queue,
    operand_index,
)

INT32 = st.integers(-(2**31), 2**31 - 1)


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    opcode = draw(st.sampled_from(Opcode))
    operands = {name: draw(INT32) for name in OPERANDS[opcode]}
    variant, header = draw(st.integers(0, 100)), [draw(INT32) for _ in HEADER[1:]]
    return Instruction(opcode, variant, header[0], header[1], header[2], header[3], operands)


@given(instructions())
def test_decode_inverts_encode(instruction: Instruction) -> None:
    words = instruction.encode()
    assert len(words) == INSTRUCTION_WORDS
    assert decode(words, {instruction.variant: instruction.opcode}) == instruction


@given(instructions())
def test_operand_index_finds_the_word(instruction: Instruction) -> None:
    words = instruction.encode()
    for name, value in instruction.operands.items():
        assert words[operand_index(instruction.opcode, name)] == value


def test_end_of_queue_decodes_to_nothing() -> None:
    assert decode(end_of_queue(), {}) is None


def test_units_are_the_progression() -> None:
    instruction = Instruction(Opcode.SAMPLE, 0, 0, 5, 3, 4, {"input": 0, "candidates": 1})
    assert list(instruction.units) == [5, 9, 13]


@pytest.mark.parametrize("operands", [{"input": 0}, {"input": 0, "candidates": 1, "more": 2}])
def test_encode_refuses_other_operands(operands: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="sample takes the operands"):
        Instruction(Opcode.SAMPLE, 0, 0, 0, 1, 1, operands).encode()


def test_encode_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="candidates = 2147483648 does not fit an int32"):
        Instruction(Opcode.SAMPLE, 0, 0, 0, 1, 1, {"input": 0, "candidates": 2**31}).encode()
