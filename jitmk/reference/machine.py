"""The reference machine: runs a program phase by phase on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from jitmk.errors import ConfigError
from jitmk.model.spec import ModelSpec
from jitmk.program.fusion import Fusion
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.program.program import BufferKind, Phase
from jitmk.reference.cache import PlainKvCache
from jitmk.reference.execute import (
    CANDIDATE_IDS,
    CANDIDATE_KEYS,
    Environment,
    NoiseFunction,
    Sampling,
    StepInput,
    appended,
    candidates,
    execute,
    filtered,
)
from jitmk.reference.ops.sample_filter import NO_FILTERS, Filters
from jitmk.reference.rope_rows import RopeRows
from jitmk.reference.weights import StepWeights
from jitmk.schedule.spans import phase_spans


@dataclass(frozen=True)
class StepResult:
    """What a step yields.

    Attributes:
        token: the next token.
        logits: fp32 [vocab_size], where they were asked for; not overwritten by later steps.
    """

    token: int
    logits: torch.Tensor | None


class ReferenceMachine:
    """Decodes one sequence with the device's roundings, in plain torch.

    Args:
        spec: the model.
        weights: its weights.
        splits: parts into which attention splits the context.
        fused: as for `lower`.
        noise: Gumbel noise; needed for temperatures above 0 only.
        sums: the type in which products are added; fp64 makes results independent of their order (see `ops`).
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: StepWeights,
        *,
        splits: int = 1,
        fused: bool | Fusion = True,
        noise: NoiseFunction | None = None,
        sums: torch.dtype = torch.float32,
    ) -> None:
        self.spec = spec
        self.program = lower(spec, splits, fused=fused)
        self.cache = PlainKvCache(spec)
        self._noise = noise
        self._rope = RopeRows(spec)
        self._environment = Environment(weights, self._read_kv, sums)
        self._buffers: dict[str, torch.Tensor] = {}
        self._reads = [tuple(phase_spans(phase).reads) for phase in self.program.phases]
        self._orders: dict[tuple[int, str], torch.Tensor | None] = {}
        self._logits = torch.empty(0)

    @torch.inference_mode()
    def step(
        self,
        token: int,
        position: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        filters: Filters = NO_FILTERS,
        want_logits: bool = False,
        prompt_length: int = 0,
    ) -> StepResult:
        """Decodes a token at a position; positions before it are in `cache`, at and after it are overwritten.

        Args:
            token: below vocab_size.
            position: from 0 on.
            temperature: 0 takes the largest logit.
            seed: of the noise.
            filters: what a draw is restricted to.
            want_logits: whether the result has them.
            prompt_length: length of the prompt that the token belongs to, 0 for a token that was generated
                (see `rope_table`).

        Raises:
            ConfigError: a temperature above 0 without a noise function.
        """
        step = self._input(token, position, temperature, seed, filters, prompt_length)
        next_token = -1
        for phase in self.program.phases:
            outputs = self._run(phase, step)
            if phase.variant.opcode is Opcode.SAMPLE:
                next_token = int(outputs["token"][0])
        return StepResult(next_token, self._logits[0].clone() if want_logits else None)

    def outputs(self) -> Mapping[str, torch.Tensor]:
        """What the phases of the last step computed.

        Returns:
            fp32 [values] for each buffer that holds numbers, by name, and "logits", fp32 [vocab_size].
        """
        kinds = {buffer.name: buffer.kind for buffer in self.program.buffers}
        shown = {name: values[0] for name, values in self._buffers.items() if kinds[name] is not BufferKind.CANDIDATE}
        return {**shown, "logits": self._logits[0]}

    def reset(self) -> None:
        """Forgets the sequence."""
        self.cache.clear()

    def _input(
        self, token: int, position: int, temperature: float, seed: int, filters: Filters, prompt_length: int
    ) -> StepInput:
        noise = None
        if temperature > 0:
            if self._noise is None:
                raise ConfigError(
                    f"temperature = {temperature}, but this reference machine has no noise to sample with; "
                    "make it with noise=jitmk.engine.philox.gumbel"
                )
            noise = self._noise(seed, position + 1, self.spec.vocab_size)
        cos, sin = self._rope.at(position, prompt_length)
        return StepInput([token], [position], cos[None], sin[None], [Sampling(temperature, noise, filters)])

    def _run(self, phase: Phase, step: StepInput) -> dict[str, torch.Tensor]:
        units = range(phase.units)
        if phase.variant.opcode is Opcode.SAMPLE:
            logits = filtered(self._logits, step.sampling)
            key, ids = candidates(logits, torch.arange(self.spec.vocab_size), step.sampling)
            return execute(
                phase, units, {CANDIDATE_KEYS: key[:, None], CANDIDATE_IDS: ids[:, None]}, step, self._environment
            )
        inputs = {operand: self._buffers[phase.buffers[operand].name] for operand in self._reads[phase.index]}
        outputs = execute(phase, units, inputs, step, self._environment)
        for token, kv_head, key, value in appended(phase, units, inputs, step, self._environment):
            assert phase.layer is not None
            self.cache.write_head(phase.layer, kv_head, step.positions[token], key, value, token)
        for operand, values in outputs.items():
            self._store(phase, operand, values)
        return outputs

    def _store(self, phase: Phase, operand: str, values: torch.Tensor) -> None:
        buffer = phase.buffers[operand]
        if buffer.kind is BufferKind.CANDIDATE:
            self._logits = values
            return
        order = self._value_order(phase, operand)
        if order is not None:
            # Other phases may write the rest, so it stays as it is; before anyone has written it, it is NaN.
            whole = self._buffers.get(buffer.name, torch.full((len(values), buffer.values), torch.nan)).clone()
            whole[:, order] = values
            values = whole
        self._buffers[buffer.name] = values

    def _value_order(self, phase: Phase, operand: str) -> torch.Tensor | None:
        """Where in the buffer the values of all units lie, int64 [values]; None if they are all of it, in order."""
        key = phase.index, operand
        if key not in self._orders:
            intervals = phase_spans(phase).writes[operand]
            places = np.concatenate([np.arange(*pair) for pair in zip(intervals.begin, intervals.end, strict=True)])
            in_order = np.array_equal(places, np.arange(phase.buffers[operand].values))
            self._orders[key] = None if in_order else torch.from_numpy(places)
        return self._orders[key]

    def _read_kv(self, layer: int, token: int, kv_head: int, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.read_head(layer, kv_head, begin, end, token)
