"""The schedule machine: every SM walks its encoded queue, and they meet through words and epochs alone.

Two agents play each SM, as on the device: the loader, which streams old keys and values ahead of time and waits only
for what earlier steps of the launch appended to the cache, and the executor, which waits for words and publishes
words. An interleaving decides who takes the next turn, so that a test can look for the order that breaks a schedule.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from jitmk.errors import ConfigError
from jitmk.model.spec import ModelSpec
from jitmk.program.program import BufferKind
from jitmk.program.weights import plan_weights
from jitmk.reference.cache import PlainKvCache
from jitmk.reference.execute import NoiseFunction, Sampling, StepInput
from jitmk.reference.interleaving import Agent, Interleaving, run_to_end
from jitmk.reference.kv_ledger import KvLedger
from jitmk.reference.rope_rows import RopeRows
from jitmk.reference.sm import Launch, Memory, Sm
from jitmk.reference.weights import StepWeights
from jitmk.reference.words import WordArena, from_words, value_words
from jitmk.reference.work import Resolver, Work
from jitmk.schedule.encode import decode, encode
from jitmk.schedule.schedule import Schedule


class ScheduleMachine:
    """Runs a schedule's queues on the CPU; words and cache stay from one launch to the next, as on the device.

    Args:
        schedule: need not be one that `verify` accepts.
        spec: the model of the schedule's program.
        weights: its weights.
        noise: Gumbel noise; needed for temperatures above 0 only.
        sums: the type in which products are added. With fp64 the results equal those of a `ReferenceMachine` with
            fp64 sums bit for bit; with fp32 they differ by the order in which a matrix library adds.
        ring: how many units' keys and values a loader may hold that its executor has not used.
    """

    def __init__(
        self,
        schedule: Schedule,
        spec: ModelSpec,
        weights: StepWeights,
        *,
        noise: NoiseFunction | None = None,
        sums: torch.dtype = torch.float64,
        ring: int = 64,
    ) -> None:
        program, plan = schedule.program, plan_weights(spec)
        queues = decode(encode(schedule, plan, program.variants), program.variants)
        resolver = Resolver(plan)
        work = [[resolver.work(i, program.phases[i.phase], sm) for i in queue] for sm, queue in enumerate(queues)]
        self.spec, self.program = spec, program
        self._noise, self._rope = noise, RopeRows(spec)
        readers = _count_readers(work, program.arena_words)
        self._memory = Memory(WordArena(readers), KvLedger(spec), [(0, -1)] * schedule.sms)
        self._sms = [Sm(sm, queue, self._memory, weights, sums, ring) for sm, queue in enumerate(work)]
        self._epoch = 0
        self.logits: list[torch.Tensor] = []
        """The logits of every step of the last launch, fp32 [vocab_size]."""

    @property
    def cache(self) -> PlainKvCache:
        """Keys and values of every position so far."""
        return self._memory.kv.cache

    @torch.inference_mode()
    def run(
        self,
        token: int,
        position: int,
        steps: int,
        interleaving: Interleaving,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """One launch: decodes `steps` tokens, each step's input being the token of the step before.

        Args:
            token, position: the first step's input; positions before it are in the cache.
            steps: at least 1.
            interleaving: who comes when.
            temperature, seed: of all steps.

        Returns:
            The tokens.

        Raises:
            DeadlockError: nobody could go on.
            RaceError: something depended on who came first.
            ConfigError: a temperature above 0 without a noise function.
        """

        def step_input(step: int, token: int) -> StepInput:
            cos, sin = self._rope.at(position + step)
            sampling = Sampling(temperature, self._noise_at(position + step, temperature, seed))
            return StepInput([token], [position + step], cos[None], sin[None], [sampling])

        self.logits = [torch.full((self.spec.vocab_size,), torch.nan) for _ in range(steps)]
        first_epoch = self._epoch + 1
        launch = Launch(token, position, steps, first_epoch, step_input, self.must_acquire, self.logits, [])
        self._epoch += steps
        self._memory.kv.begin_launch(position, steps)
        agents = [Agent(sm.number, "loader", sm.loader(launch)) for sm in self._sms]
        agents += [Agent(sm.number, "executor", sm.executor(launch)) for sm in self._sms]
        run_to_end(agents, interleaving)
        return launch.chosen

    def must_acquire(self, old: range, newest: bool, launch_position: int) -> bool:
        """Whether a loader must wait until the step before has appended to the cache.

        It must where the launch itself appended some of the positions, not only where the last one is among them: a
        loader may be several steps ahead of the step whose positions it wants.

        Args:
            old: the positions that it is about to fetch.
            newest: whether the unit also has the new token, and so the position of the step before.
            launch_position: position of the launch's first step.
        """
        return len(old) > 0 and old.stop > launch_position

    def outputs(self, copy: int = 0) -> dict[str, torch.Tensor]:
        """Every buffer of numbers after the last step, by name: fp32 [values], from the copy `copy` mod copies."""
        shown = {}
        for buffer in self.program.buffers:
            if buffer.kind is not BufferKind.CANDIDATE:
                at = buffer.offset + copy % buffer.copies * buffer.copy_stride
                _, words = value_words(buffer.kind, 0, buffer.values)
                values = from_words(buffer.kind, self._memory.words.peek(slice(at, at + words)), buffer.values)
                shown[buffer.name] = torch.from_numpy(values.copy())
        return shown

    def _noise_at(self, position: int, temperature: float, seed: int) -> torch.Tensor | None:
        if temperature == 0:
            return None
        if self._noise is None:
            raise ConfigError(f"temperature = {temperature}, but this schedule machine has no noise to sample with")
        return self._noise(seed, position + 1, self.spec.vocab_size)


def _count_readers(queues: list[list[Work]], words: int) -> npt.NDArray[np.int64]:
    """How many reads each word gets in a step."""
    counts = np.zeros(words, dtype=np.int64)
    for queue in queues:
        for work in queue:
            for unit in work.units:
                for access in unit.reads:
                    for place in access.words:
                        counts[place] += 1
    return counts
