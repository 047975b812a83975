"""One SM of the schedule machine: its loader and its executor, as agents that take turns with all others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from jitmk.program.configs import AttentionConfig
from jitmk.program.isa import Opcode
from jitmk.program.packing import UNIT_ROWS
from jitmk.program.program import BufferKind
from jitmk.reference.execute import (
    CANDIDATE_IDS,
    CANDIDATE_KEYS,
    Environment,
    StepInput,
    appended,
    candidates,
    execute,
)
from jitmk.reference.interleaving import Turns, Wait
from jitmk.reference.kv_ledger import KvLedger
from jitmk.reference.ops.attention import old_positions
from jitmk.reference.ops.sample import best_candidate
from jitmk.reference.weights import StepWeights
from jitmk.reference.words import RaceError, WordArena, from_words, to_words
from jitmk.reference.work import Access, UnitWork, Work, candidate_words

Tensors = dict[str, torch.Tensor]


@dataclass
class Memory:
    """What the SMs share.

    Attributes:
        words: the word arena.
        kv: the cache.
        tokens: for each SM the word by which it learns of the token of a step: epoch and token.
    """

    words: WordArena
    kv: KvLedger
    tokens: list[tuple[int, int]]


@dataclass(frozen=True)
class Launch:
    """What a launch is given, and where it leaves its results.

    Attributes:
        token, position: the first step's input.
        steps: how many there are.
        epoch: of the first step.
        step_input: (step, token) -> what that step is given.
        must_acquire: (old positions of a unit, whether it has the new token too, position of the launch) -> whether
            a loader waits for the step before.
        logits: of each step, fp32 [vocab_size].
        chosen: the tokens so far.
    """

    token: int
    position: int
    steps: int
    epoch: int
    step_input: Callable[[int, int], StepInput]
    must_acquire: Callable[[range, bool, int], bool]
    logits: list[torch.Tensor]
    chosen: list[int]


@dataclass
class _Turn:
    """Where an agent is: for waits and errors."""

    sm: int
    role: str
    step: int
    epoch: int
    index: int = -1
    phase: str = ""

    def wait(self, what: str) -> Wait:
        return Wait(self.sm, self.role, self.step, self.index, self.phase, what)

    def __str__(self) -> str:
        return f"SM {self.sm} {self.role}, step {self.step}, instruction {self.index} ({self.phase})"


class Sm:
    """One SM.

    Args:
        number: which.
        queue: its instructions.
        memory: shared with the others.
        weights: of the model.
        sums: the type in which products are added.
        ring: how many units' keys and values the loader may hold that the executor has not used.
    """

    def __init__(
        self,
        number: int,
        queue: Sequence[Work],
        memory: Memory,
        weights: StepWeights,
        sums: torch.dtype,
        ring: int,
    ) -> None:
        self.number = number
        self.queue = queue
        self._memory, self._weights, self._sums, self._ring = memory, weights, sums, ring
        self._old_kv: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def loader(self, launch: Launch) -> Turns:
        """Fetches old keys and values, in the order in which the executor will want them."""
        self._old_kv.clear()
        for step in range(launch.steps):
            turn = _Turn(self.number, "loader", step, launch.epoch + step)
            for turn.index, work in enumerate(self.queue):
                turn.phase = work.phase.name
                if work.phase.variant.opcode is Opcode.ATTENTION:
                    for unit in work.units:
                        yield from self._load(turn, launch, work, unit.unit)

    def _load(self, turn: _Turn, launch: Launch, work: Work, unit: int) -> Turns:
        config, layer = work.phase.variant.config, work.phase.layer
        assert isinstance(config, AttentionConfig) and layer is not None
        group, split = divmod(unit, work.phase.splits)
        head = config.group_kv_head(group)
        window = work.phase.numbers["window"]
        old = old_positions(launch.position + turn.step, split, work.phase.splits, window)
        while len(self._old_kv) >= self._ring:
            yield turn.wait("room in its ring")
        if launch.must_acquire(old, split == work.phase.splits - 1, launch.position):
            while not self._memory.kv.is_released(layer, head, turn.epoch - 1):
                yield turn.wait(f"the append of the step before to head {head} of layer {layer}")
        self._old_kv.append(self._memory.kv.read(layer, head, old, str(turn)))
        yield None

    def executor(self, launch: Launch) -> Turns:
        """Runs the queue once a step."""
        for step in range(launch.steps):
            turn = _Turn(self.number, "executor", step, launch.epoch + step)
            token = launch.token
            if step > 0:
                while self._memory.tokens[self.number][0] < turn.epoch - 1:
                    yield turn.wait("the token of the step before")
                epoch, token = self._memory.tokens[self.number]
                if epoch != turn.epoch - 1 and self.queue:
                    raise RaceError(f"{turn}: the token that it starts with was overwritten in epoch {epoch}")
            step_input = launch.step_input(step, token)
            for turn.index, work in enumerate(self.queue):
                turn.phase = work.phase.name
                yield from self._execute(turn, launch, work, step_input)

    def _execute(self, turn: _Turn, launch: Launch, work: Work, step: StepInput) -> Turns:
        if work.phase.variant.opcode is Opcode.BARRIER:
            yield from self._meet(turn, work)
            return
        inputs = {name: torch.full((1, work.phase.buffers[name].values), torch.nan) for name in work.inputs}
        best: list[tuple[torch.Tensor, torch.Tensor]] = []
        for unit in work.units:
            for access in unit.reads:
                yield from self._read(turn, access, inputs)
            outputs = yield from self._compute(turn, work, unit, inputs, step)
            if work.phase.variant.opcode is Opcode.SAMPLE:
                yield from self._announce(turn, launch, int(outputs["token"][0]))
            elif work.is_lm_head:
                logits = outputs["output"]
                ids = torch.arange(unit.unit * UNIT_ROWS, unit.unit * UNIT_ROWS + logits.shape[1])
                launch.logits[turn.step][ids] = logits[0]
                best.append(candidates(logits, ids, step.sampling))
            else:
                yield from self._write(turn, work, unit, outputs)
        if best:
            keys, ids = (torch.stack(column, dim=1) for column in zip(*best, strict=True))
            yield from self._propose(turn, work, *best_candidate(keys, ids))

    def _read(self, turn: _Turn, access: Access, inputs: Tensors) -> Turns:
        """Waits for words and adds their values to `inputs`, where what was not read is NaN."""
        (words,) = access.words
        while (missing := self._memory.words.first_missing(words, turn.epoch)) is not None:
            yield turn.wait(f"{access}: word {missing}")
        payload = self._memory.words.read(words, turn.epoch, access.buffer.name, str(turn))
        if access.buffer.kind is BufferKind.CANDIDATE:
            inputs[CANDIDATE_KEYS] = torch.from_numpy(payload[0::2].copy().view(np.float32))[None]
            inputs[CANDIDATE_IDS] = torch.from_numpy(payload[1::2].astype(np.int64))[None]
        else:
            values = from_words(access.buffer.kind, payload, access.end - access.begin)
            inputs[access.operand][0, access.begin : access.end] = torch.from_numpy(values)
        yield None

    def _compute(
        self, turn: _Turn, work: Work, unit: UnitWork, inputs: Tensors, step: StepInput
    ) -> Generator[Wait | None, None, Tensors]:
        one = range(unit.unit, unit.unit + 1)
        operands = dict(inputs)
        for access in unit.reads:
            if access.operand == "residual_in":
                operands[access.operand] = inputs[access.operand][:, access.begin : access.end]
        yield from self._append(turn, work, one, operands, step)
        if work.phase.variant.opcode is not Opcode.ATTENTION:
            return execute(work.phase, one, operands, step, Environment(self._weights, _no_kv, self._sums))
        while not self._old_kv:
            yield turn.wait("its loader")
        old = self._old_kv.popleft()
        yield None
        return execute(work.phase, one, operands, step, Environment(self._weights, lambda *_: old, self._sums))

    def _append(self, turn: _Turn, work: Work, one: range, inputs: Tensors, step: StepInput) -> Turns:
        environment = Environment(self._weights, _no_kv, self._sums)
        for _, head, key, value in appended(work.phase, one, inputs, step, environment):
            layer = work.phase.layer
            assert layer is not None
            self._memory.kv.append(layer, head, step.positions[0], key, value, turn.epoch, str(turn))
            yield None
            self._memory.kv.release(layer, head, turn.epoch)
            yield None

    def _meet(self, turn: _Turn, work: Work) -> Turns:
        """Says that this SM has come to a barrier, then waits for the others; one that is further counts as here."""
        buffer = work.phase.buffers["output"]
        for unit in work.units:
            yield from self._write(turn, work, unit, {"output": torch.zeros((1, 1))})
        begin = work.instruction.operands["output"]
        while (
            missing := self._memory.words.first_missing(slice(begin, begin + buffer.values), turn.epoch)
        ) is not None:
            yield turn.wait(f"SM {missing - begin} at the barrier")

    def _write(self, turn: _Turn, work: Work, unit: UnitWork, outputs: Tensors) -> Turns:
        """Publishes a unit's values, span after span and copy after copy."""
        done = dict.fromkeys(outputs, 0)
        for access in unit.writes:
            begin = done[access.operand]
            done[access.operand] = end = begin + access.end - access.begin
            payload = to_words(access.buffer.kind, outputs[access.operand][0, begin:end].numpy())
            for words in access.words:
                self._memory.words.write(words, payload, turn.epoch, access.buffer.name, str(turn))
                yield None
        assert all(done[operand] == values.shape[1] for operand, values in outputs.items()), "a value has no place"

    def _propose(self, turn: _Turn, work: Work, key: torch.Tensor, token: torch.Tensor) -> Turns:
        """Publishes the best candidate of an instruction of the LM head, key and token one after the other."""
        words = candidate_words(work.instruction)
        payload = (*to_words(BufferKind.FP32, key.numpy()), np.uint32(token[0].item()))
        name = work.phase.buffers["output"].name
        for at, word in zip(range(words.start, words.stop), payload, strict=True):
            self._memory.words.write(slice(at, at + 1), np.array([word]), turn.epoch, name, str(turn))
            yield None

    def _announce(self, turn: _Turn, launch: Launch, token: int) -> Turns:
        """Tells every SM the token."""
        if len(launch.chosen) != turn.step:
            raise RaceError(f"{turn}: the token of this step has been chosen already")
        launch.chosen.append(token)
        for sm in range(len(self._memory.tokens)):
            self._memory.tokens[sm] = (turn.epoch, token)
            yield None


def _no_kv(*place: int) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError(f"the cache is read at {place}, but not by attention")
