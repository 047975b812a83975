"""Puts a program together: phases in order, buffers one behind the other, each variant once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jitmk.program.configs import LSE_WORDS, Config
from jitmk.program.isa import Opcode
from jitmk.program.program import Buffer, BufferKind, Phase, Program, Variant


@dataclass
class ProgramBuilder:
    """A program under construction; `tokens` is the batch, `spread` that of buffers that many SMs write to."""

    tokens: int
    spread: int = 1
    phases: list[Phase] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)
    words: int = 0
    _named: dict[str, list[Variant]] = field(default_factory=dict)

    def buffer(self, name: str, kind: BufferKind, values: int, copies: int = 1, spread: int = 1) -> Buffer:
        """A new buffer behind the others."""
        buffer = Buffer(name, kind, values, self.tokens, copies, self.words, spread)
        self.words += buffer.total_words
        self.buffers.append(buffer)
        return buffer

    def bf16(self, name: str, values: int, copies: int = 1) -> Buffer:
        return self.buffer(name, BufferKind.BF16, values, copies, self.spread)

    def heads(self, name: str, values: int, copies: int = 1) -> Buffer:
        """One for bf16 that attention writes, head by head."""
        return self.buffer(name, BufferKind.BF16, values, copies)

    def logarithms(self, name: str, rows: int, copies: int = 1) -> Buffer:
        """One for a number for each head of each split, which fills a sector."""
        return self.buffer(name, BufferKind.FP32, rows * LSE_WORDS, copies, self.spread)

    def fp32(self, name: str, values: int, copies: int = 1) -> Buffer:
        return self.buffer(name, BufferKind.FP32, values, copies)

    def phase(
        self,
        name: str,
        variant: str,
        opcode: Opcode,
        config: Config,
        units: int,
        buffers: Mapping[str, Buffer],
        *,
        layer: int | None = None,
        matrices: Mapping[str, str] | None = None,
        vectors: Mapping[str, str] | None = None,
        numbers: Mapping[str, int] | None = None,
        splits: int = 1,
    ) -> None:
        """The next phase; `variant` is the name that its code gets, or a number behind it where the name is taken."""
        self.phases.append(
            Phase(
                len(self.phases),
                name,
                self._variant(variant, opcode, config),
                units,
                layer,
                buffers,
                matrices or {},
                vectors or {},
                numbers or {},
                splits,
            )
        )

    def finish(self, splits: int) -> Program:
        """The program."""
        return Program(tuple(self.phases), tuple(self.buffers), tuple(self.variants), self.tokens, splits, self.words)

    def _variant(self, name: str, opcode: Opcode, config: Config) -> Variant:
        """The variant of that name and config: layers of a kind share their code."""
        taken = self._named.setdefault(name, [])
        for variant in taken:
            if variant.config == config:
                return variant
        taken.append(Variant(f"{name}_{len(taken) + 1}" if taken else name, opcode, config))
        self.variants.append(taken[-1])
        return taken[-1]
