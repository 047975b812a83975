"""A program: the phases of one step, the buffers between them, and the values that each unit reads and writes.

Buffers are in single-assignment form: a step writes every value once, in one phase. That is what makes the order of
instructions checkable, and what lets the words in a buffer vouch for themselves by epoch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import torch

from jitmk.program import access
from jitmk.program.access import Span
from jitmk.program.configs import SECTOR_WORDS, Config
from jitmk.program.isa import Opcode
from jitmk.program.packing import ceil_div

WORD_ALIGNMENT = 32
"""Buffers begin at multiples of this many words (256 bytes)."""

SECTORS_OF_LINE = 4
"""Sectors of a line of L2, 128 bytes."""


NARROW = 1024
"""Hidden size of the widest models whose steps are a chain of waits for words, rather than a stream of weights. What is
chosen for them and what for wider ones was measured on an H200 (docs/performance.md)."""


def word_spread(hidden_size: int) -> int:
    """How many sectors apart the sectors lie of buffers to which many SMs write, in the programs of a model.

    Such a buffer is polled by SMs while others are still writing to it, and by all that was measured each write to an
    L2 line delays everyone who polls it. With a line for each sector a step of a narrow model takes 4 to 6 percent
    less. Wide models find most words at their first look, for which they then need four times as many lines: they lose
    one to three percent (docs/performance.md). What an SM writes line by line, attention's output, has no need of it.
    """
    return SECTORS_OF_LINE if hidden_size <= NARROW else 1


class BufferKind(Enum):
    """What a word of a buffer holds beside its epoch."""

    BF16 = "bf16"  # two consecutive values
    FP32 = "fp32"  # one value
    CANDIDATE = "candidate"  # the LM head's best tokens, two words for each of its instructions: key, token id


MAX_CANDIDATES = 1024
"""LM head instructions of a step at most; the candidate buffer has room for this many."""


@dataclass(frozen=True)
class Buffer:
    """A vector between phases.

    Attributes:
        name: unique in the program.
        kind: what a word holds.
        values: logical values of one token.
        tokens: sequences in the batch.
        copies: how often each word is published; SM i polls copy i mod copies, so that fewer SMs poll an L2 line.
        offset: first word, counted from the start of the word arena.
        spread: how many sectors apart the sectors of the vector lie (see `word_spread`).
    """

    name: str
    kind: BufferKind
    values: int
    tokens: int
    copies: int
    offset: int
    spread: int = 1

    @property
    def words(self) -> int:
        """Words of one token in one copy."""
        if self.kind is BufferKind.CANDIDATE:
            return 2 * MAX_CANDIDATES
        return ceil_div(self.values, 2) if self.kind is BufferKind.BF16 else self.values

    @property
    def token_stride(self) -> int:
        """Words from one token to the next."""
        return ceil_div(self.words, WORD_ALIGNMENT) * WORD_ALIGNMENT * self.spread

    @property
    def copy_stride(self) -> int:
        """Words from one copy to the next."""
        return self.tokens * self.token_stride

    @property
    def total_words(self) -> int:
        return self.copies * self.copy_stride

    def places(self, copy: int = 0) -> torch.Tensor:
        """Where the words of a copy lie in the arena, int64 [words]; of one token."""
        word = torch.arange(self.words)
        first = self.offset + copy * self.copy_stride
        return first + word // SECTOR_WORDS * (SECTOR_WORDS * self.spread) + word % SECTOR_WORDS


@dataclass(frozen=True)
class Variant:
    """An opcode specialised to shapes: one piece of code in the kernel."""

    name: str
    opcode: Opcode
    config: Config


@dataclass(frozen=True)
class Phase:
    """One operation of a step over the whole GPU.

    Attributes:
        index: place in the program; the program's order is a topological order.
        name: for example "layers.3.gate_up".
        variant: the code that runs it.
        units: how many units it is dealt in.
        layer: the layer, or None.
        buffers: buffers by operand (as in `isa.OPERANDS`).
        matrices: names of matrices of the weight plan by operand.
        vectors: names of constant vectors of the weight plan by operand.
        numbers: operands that are plain numbers: "window", "rope", "first".
        splits: parts of the context (ATTENTION, ATTENTION_REDUCE, and the projection that merges them).
    """

    index: int
    name: str
    variant: Variant
    units: int
    layer: int | None = None
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    matrices: Mapping[str, str] = field(default_factory=dict)
    vectors: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    splits: int = 1

    @property
    def weights(self) -> str | None:
        """The matrix that a matvec multiplies with, or the embedding table."""
        return self.matrices.get("weights", self.matrices.get("table"))

    def reads(self, unit: int) -> tuple[Span, ...]:
        """What a unit reads of other phases' outputs in the same step."""
        return access.reads(self, unit)

    def writes(self, unit: int) -> tuple[Span, ...]:
        """What a unit writes for other phases of the same step."""
        return access.writes(self, unit)


@dataclass(frozen=True)
class Program:
    """One step of one model.

    Attributes:
        phases: in a topological order.
        buffers: every buffer between phases, laid out in the word arena.
        variants: the code that the phases need; an instruction's `variant` is an index into this.
        tokens: sequences in the batch.
        splits: parts into which attention splits the context.
        arena_words: words of the arena.
    """

    phases: tuple[Phase, ...]
    buffers: tuple[Buffer, ...]
    variants: tuple[Variant, ...]
    tokens: int
    splits: int
    arena_words: int
