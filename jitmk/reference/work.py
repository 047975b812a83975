"""What an encoded instruction reads and writes, word by word: operands resolved as the kernel resolves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jitmk.errors import ScheduleError
from jitmk.program.access import Span
from jitmk.program.isa import NO_OPERAND, Instruction, Opcode
from jitmk.program.program import Buffer, BufferKind, Phase
from jitmk.program.weights import WeightPlan
from jitmk.reference.words import value_words
from jitmk.schedule.spans import phase_spans


@dataclass(frozen=True)
class Access:
    """Values [begin, end) of an operand's buffer, and the words of them, one slice for each copy that is touched.

    `words` begin where the instruction's operand says, which in a correct encoding is the buffer's offset.
    """

    operand: str
    buffer: Buffer
    begin: int
    end: int
    words: tuple[slice, ...]

    def __str__(self) -> str:
        return f"values {self.begin} to {self.end - 1} of buffer {self.buffer.name!r}"


@dataclass(frozen=True)
class UnitWork:
    """One unit of an instruction: what it reads that no earlier unit of the instruction has, and what it writes."""

    unit: int
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


@dataclass(frozen=True)
class Work:
    """An instruction, resolved.

    Attributes:
        instruction: as it was decoded.
        phase: what it belongs to, with weights and numbers as the instruction's operands say.
        units: in the order in which they are computed.
        inputs: the operands that units of the phase read numbers of, not all of them necessarily these units.
    """

    instruction: Instruction
    phase: Phase
    units: tuple[UnitWork, ...]
    inputs: tuple[str, ...]

    @property
    def is_lm_head(self) -> bool:
        """Whether the instruction publishes a candidate instead of its values."""
        output = self.phase.buffers.get("output")
        return output is not None and output.kind is BufferKind.CANDIDATE and self.phase.variant.opcode is Opcode.MATVEC


class Resolver:
    """Finds what instructions mean, as the kernel does: by their operands.

    Args:
        plan: where the weights lie.
    """

    def __init__(self, plan: WeightPlan) -> None:
        self._matrices = {matrix.grain: name for name, matrix in plan.matrices.items()}
        self._vectors = {vector.offset: name for name, vector in plan.vectors.items()}

    def work(self, instruction: Instruction, phase: Phase, sm: int) -> Work:
        """Resolves an instruction of an SM.

        Raises:
            ScheduleError: a weight operand points at no matrix or vector.
        """
        seen: set[Span] = set()
        units = []
        for unit in instruction.units:
            fresh = [span for span in phase.reads(unit) if span not in seen]
            seen.update(fresh)
            reads = tuple(_access(instruction, phase, span, sm) for span in fresh)
            writes = tuple(_access(instruction, phase, span, None) for span in phase.writes(unit))
            units.append(UnitWork(unit, reads, writes))
        kinds = {operand: phase.buffers[operand].kind for operand in phase_spans(phase).reads}
        inputs = tuple(operand for operand, kind in kinds.items() if kind is not BufferKind.CANDIDATE)
        return Work(instruction, self._with_weights(instruction, phase), tuple(units), inputs)

    def _with_weights(self, instruction: Instruction, phase: Phase) -> Phase:
        """The phase with the matrices, vectors and numbers that the instruction's operands name."""

        def find(operand: str, places: Mapping[int, str]) -> str | None:
            place = instruction.operands.get(operand, NO_OPERAND)
            if place == NO_OPERAND:
                return None
            if place not in places:
                raise ScheduleError(f"phase {phase.name!r}: the operand {operand!r} is {place}, where nothing begins")
            return places[place]

        def found(operands: Mapping[str, str], places: Mapping[int, str]) -> dict[str, str]:
            names = {operand: find(operand, places) for operand in operands}
            return {operand: name for operand, name in names.items() if name is not None}

        return replace(
            phase,
            matrices=found(phase.matrices, self._matrices),
            vectors=found(phase.vectors, self._vectors),
            numbers={name: instruction.operands[name] for name in phase.numbers},
        )


def candidate_words(instruction: Instruction) -> slice:
    """Where an instruction of the LM head publishes its candidate: the words of its key and its token id."""
    first = instruction.operands["output"] + 2 * instruction.operands["candidate"]
    return slice(first, first + 2)


def _access(instruction: Instruction, phase: Phase, span: Span, sm: int | None) -> Access:
    """A span's words: of the copy that an SM polls, or (`sm` None) of every copy."""
    operand, buffer = span.operand, phase.buffers[span.operand]
    if buffer.kind is BufferKind.CANDIDATE:
        words = (slice(0, 0),)
        if sm is not None:
            first = instruction.operands[operand]
            words = (slice(first, first + 2 * instruction.operands["candidates"]),)
        return Access(operand, buffer, span.begin, span.end, words)
    begin, end = value_words(buffer.kind, span.begin, span.end)
    # Inputs of a matvec are polled by every SM, so their copies are shared out; who else reads, reads the first.
    polled = sm % buffer.copies if sm is not None and phase.variant.opcode is Opcode.MATVEC else 0
    copies = range(buffer.copies) if sm is None else (polled,)
    starts = [instruction.operands[operand] + copy * buffer.copy_stride for copy in copies]
    return Access(operand, buffer, span.begin, span.end, tuple(slice(at + begin, at + end) for at in starts))
