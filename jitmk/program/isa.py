"""The instruction set: the only definition of opcodes, operands and their encoding.

An instruction is 32 int32 words. The first words are the same for every opcode (`HEADER`), the others belong to
the opcode. The C++ side (`templates/isa.cuh.j2`) is rendered from this module, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

INSTRUCTION_WORDS = 32
"""Words of an instruction: one coalesced 128-byte load of a warp."""

NO_OPERAND = -1
"""Value of an operand that the instruction's variant does not use."""


class Opcode(Enum):
    """What an instruction does. The value is the name of its template, its twin in torch and its tests.

    The first five, with their prologues and epilogues, are what a model lowers to. The others do one thing each, for
    combinations that nothing is fused for, and for looking at a model part by part.
    """

    EMBED = "embed"
    MATVEC = "matvec"
    ATTENTION = "attention"
    ATTENTION_REDUCE = "attention_reduce"
    SAMPLE = "sample"
    NORM = "norm"
    RESIDUAL_NORM_ADD = "residual_norm_add"
    RESIDUAL_ADD = "residual_add"
    ROPE = "rope"
    KV_APPEND = "kv_append"
    ACTIVATE = "activate"
    GATED_ACTIVATE = "gated_activate"
    ADD = "add"
    COPY = "copy"
    ZERO = "zero"
    BARRIER = "barrier"
    NO_OP = "no_op"


HEADER = ("variant", "phase", "unit_begin", "unit_count", "unit_stride")
"""Words 0 to 4 of every instruction.

variant: index of the kernel's specialised code for this opcode; `END_VARIANT` ends a queue.
phase: index of the phase in the program, for error reports and traces.
unit_begin, unit_count, unit_stride: the units of the phase that this instruction computes, an arithmetic progression.
"""

END_VARIANT = -1
"""The variant of the instruction that ends every queue."""

OPERANDS: Mapping[Opcode, tuple[str, ...]] = {
    # Units are groups of 8 rows of the residual. table, positions: the embedding matrix and that of learned positions.
    Opcode.EMBED: ("table", "positions", "output", "residual_out"),
    # Units are groups of 8 rows of the matrix. candidate: slot of the sampling candidate (LM head only).
    # With a post-norm in the prologue, input is the output of the block before, residual_in is read whole, and
    # residual_out is the sum of both. With the prologue MERGE, input and lse are what `splits` splits of ATTENTION
    # wrote; without it, splits is 1.
    Opcode.MATVEC: (
        "weights",
        "input",
        "output",
        "norm",
        "norm_bias",
        "bias",
        "residual_in",
        "residual_out",
        "candidate",
        "post_norm",
        "post_norm_bias",
        "splits",
        "lse",
    ),
    # Units are (head group, split), split fastest. input: queries and keys, value_input: values, both laid out as qkv
    # (they may be the same); output: attention, or with splits > 1 that of each split, [splits][heads * head_dim], and
    # lse_out: the logarithms of their normalisers, [splits][heads][LSE_WORDS], where all words of a head are alike.
    # window: positions that are attended to, the token's own included, 0 for all; rope: entries to the layer's table
    # (program/rope_layout.py), -1 for none. appended: the words that KV_APPEND wrote, where that did the append.
    Opcode.ATTENTION: (
        "layer",
        "input",
        "value_input",
        "output",
        "splits",
        "window",
        "rope",
        "q_norm",
        "k_norm",
        "appended",
        "lse_out",
    ),
    # Units are query heads. input, lse: what `splits` splits of ATTENTION wrote.
    Opcode.ATTENTION_REDUCE: ("input", "output", "splits", "lse"),
    # One unit: the choice among `candidates` candidates.
    Opcode.SAMPLE: ("input", "candidates"),
    # Units are groups. first: the value of input and output with which group 0 begins.
    Opcode.NORM: ("input", "output", "norm", "norm_bias", "first"),
    # residual_out = residual_in + scale * norm(input), and output the same in bf16. Units are 256 values.
    Opcode.RESIDUAL_NORM_ADD: ("input", "residual_in", "output", "residual_out", "norm", "norm_bias"),
    # residual_out = residual_in + scale * input, and output the same in bf16. Units are 256 values.
    Opcode.RESIDUAL_ADD: ("input", "residual_in", "output", "residual_out"),
    # Units are query heads, then key heads, of buffers that are laid out as qkv.
    Opcode.ROPE: ("input", "output", "rope"),
    # Units are key/value heads. input, value_input: as for ATTENTION; output: a word for each head, when it is done.
    Opcode.KV_APPEND: ("layer", "input", "value_input", "output"),
    # Units of these four are 256 values of the output.
    Opcode.ACTIVATE: ("input", "output"),
    Opcode.GATED_ACTIVATE: ("input", "output"),  # input: gate, up, gate, up, ...
    Opcode.ADD: ("input", "other", "output"),
    Opcode.ZERO: ("output",),
    # Units are 256 of the values from `first` on, which lie at the same place in input and output.
    Opcode.COPY: ("input", "output", "first"),
    # Unit i is SM i's: it publishes word i of output, and goes on once all words carry this epoch or a later one.
    Opcode.BARRIER: ("output",),
    Opcode.NO_OP: (),
}
"""Words 5 and following of each opcode, in order. Units of measure, by name:

table, positions, weights: grains of the weight arena (program/packing.py).
norm, norm_bias, post_norm, post_norm_bias, bias, q_norm, k_norm: elements of the constant arena.
input, value_input, other, output, residual_in, residual_out, appended, lse, lse_out: words of the word arena.
An operand that a variant does not use is `NO_OPERAND`.
"""

for _names in OPERANDS.values():
    assert len(HEADER) + len(_names) <= INSTRUCTION_WORDS


def operand_index(opcode: Opcode, name: str) -> int:
    """The word of an instruction of `opcode` that holds the operand `name`."""
    return (HEADER + OPERANDS[opcode]).index(name)


@dataclass(frozen=True)
class Instruction:
    """What one SM does of one phase.

    Attributes:
        opcode: selects the meaning of `operands`.
        variant: index of the specialised code in the kernel.
        phase: index of the phase in the program.
        unit_begin, unit_count, unit_stride: units `unit_begin + i * unit_stride` for i < unit_count.
        operands: every operand that `OPERANDS` lists for the opcode.
    """

    opcode: Opcode
    variant: int
    phase: int
    unit_begin: int
    unit_count: int
    unit_stride: int
    operands: Mapping[str, int]

    @property
    def units(self) -> range:
        """The units that this instruction computes."""
        return range(self.unit_begin, self.unit_begin + self.unit_count * self.unit_stride, self.unit_stride)

    def encode(self) -> list[int]:
        """The instruction's 32 words.

        Raises:
            ValueError: an operand is missing, unknown, or does not fit an int32.
        """
        names = OPERANDS[self.opcode]
        if set(self.operands) != set(names):
            raise ValueError(f"{self.opcode.value} takes the operands {names}, not {tuple(self.operands)}")
        words = [self.variant, self.phase, self.unit_begin, self.unit_count, self.unit_stride]
        words += [self.operands[name] for name in names]
        for name, word in zip(HEADER + names, words, strict=True):
            if not -(2**31) <= word < 2**31:
                raise ValueError(f"{self.opcode.value}: {name} = {word} does not fit an int32")
        return words + [0] * (INSTRUCTION_WORDS - len(words))


def decode(words: list[int], opcode_of_variant: Mapping[int, Opcode]) -> Instruction | None:
    """The instruction that 32 words encode; None for the end of a queue."""
    if words[0] == END_VARIANT:
        return None
    opcode = opcode_of_variant[words[0]]
    names = OPERANDS[opcode]
    operands = dict(zip(names, words[len(HEADER) : len(HEADER) + len(names)], strict=True))
    return Instruction(opcode, words[0], words[1], words[2], words[3], words[4], operands)


def end_of_queue() -> list[int]:
    """The 32 words that end a queue."""
    return [END_VARIANT] + [0] * (INSTRUCTION_WORDS - 1)
