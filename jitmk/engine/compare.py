"""Whether a backend's step is what the program says: each phase recomputed from the values that it was given.

Comparing two backends end to end says little: rounding errors of early phases grow through the later ones. So each
phase is held to the reference opcode applied to *this backend's own* inputs of that phase; what remains is the
rounding of one phase, and it has a bound. In the bounds below, |a| is taken elementwise. Rounding to bf16 is off by at
most 2^-8, relative to the number, so two roundings of nearly the same number are at most 2^-7 apart.

    projection   slack * |W| |p(x)| + 2^-7 |y|, p the prologue. slack is 2^-14 where x is rounded to bf16 as in the
                 reference: only the order of fp32 sums differs. It is 2^-10 where p norms before it rounds, for fp32
                 noise tips some of its roundings, and 2^-7 for the torch backend, which on a CPU rounds neither its
                 input nor what p makes of it
    activation   the projection's bound through f(y): 1.13 dy, for no activation is steeper
    gate and up  through f(g) u: |f(g)| du + 1.13 |u| dg
    residual     the projection's bound, scaled; it is kept in fp32
    norm         2^-18 of the largest value, for the sums, and 2^-7 |y| where the result is rounded
    cache        2^-7 (|k1| + |k2|): the two terms of a rotation
    attention    d = 2^-7 scale |q||k| is by how much rounding moves a score, where |q||k| is the largest product of one
                 component (only a rounding that fp32 noise tips over differs), for the torch backend twice the largest
                 sum of all. A probability moves by the factor exp(2d); probabilities and the result are rounded too:
                 (exp(2d) - 1 + 2^-7) sum(p |v|) + 2^-7 |y|; where the context was split, so is what came out of each
                 part: 2^-8 sum(p |v|) more
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.configs import LSE_WORDS, AttentionConfig, Epilogue, MatvecConfig, NormConfig, Prologue
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.program.program import BufferKind, Phase
from jitmk.reference.execute import (
    Environment,
    Sampling,
    StepInput,
    appended,
    execute,
    matvec_input,
    matvec_vectors,
    new_tokens,
)
from jitmk.reference.ops.activate import apply_activation
from jitmk.reference.ops.attention import NewToken
from jitmk.reference.ops.attention_reduce import merge_splits
from jitmk.reference.ops.matvec import prologue
from jitmk.reference.ops.norm import normalise
from jitmk.reference.ops.rounding import soft_capped
from jitmk.reference.rope_rows import RopeRows
from jitmk.reference.weights import StepWeights
from jitmk.schedule.spans import phase_spans

BF16 = 2.0**-7
"""Largest relative distance of two roundings to bf16 of nearly the same number."""

_ROUNDED_SLACK = 2.0**-14
_NORMED_SLACK = 2.0**-10
_UNROUNDED_SLACK = 2.0**-7
_SUMS = 2.0**-18
_STEEPEST = 1.13

ReadCache = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
"""(layer, positions) -> keys and values of the first positions, each [kv_heads, positions, head_dim] on the CPU."""


@dataclass(frozen=True)
class PhaseCheck:
    """One output of one phase against its reference.

    Attributes:
        phase: for example "layers.3.gate_up"; "... (cache)" for what attention appends.
        layer: the layer, or None.
        buffer: name of the output.
        rows: values that differ by more than their bound, from the first on.
        worst: largest difference, in bounds: above 1 is beyond rounding; infinite where a value is not a number.
        difference: largest difference.
    """

    phase: str
    layer: int | None
    buffer: str
    rows: tuple[int, ...]
    worst: float
    difference: float

    @property
    def sound(self) -> bool:
        """Whether every difference may be rounding."""
        return not self.rows


@dataclass(frozen=True)
class Observation:
    """A step of a backend, as it can be seen from outside.

    Attributes:
        token, position: what was decoded.
        outputs: what `PhaseOutputs.phase_outputs` returned.
        cache: reads the backend's cache after the step.
        rounds: whether the backend rounds where the device does; the torch backend does not.
    """

    token: int
    position: int
    outputs: Mapping[str, torch.Tensor]
    cache: ReadCache
    rounds: bool


@dataclass(frozen=True)
class _Expected:
    """What an output should be, and how far from it rounding may lead; both fp32 [values]."""

    buffer: str
    values: torch.Tensor
    bound: torch.Tensor
    cached: bool = False


class StepChecker:
    """Checks steps of one model.

    Args:
        spec: the model.
        weights: its weights on the CPU.
    """

    def __init__(self, spec: ModelSpec, weights: StepWeights) -> None:
        self._spec = spec
        self._weights = weights
        self._rope = RopeRows(spec)
        self._program = lower(spec)

    @torch.inference_mode()
    def check(self, seen: Observation) -> Iterator[PhaseCheck]:
        """Every output of every phase, in the order of the program."""
        seen = replace(seen, outputs=self._merged(seen.outputs))
        for phase in self._program.phases:
            for expected in self._expected(phase, seen):
                name = f"{phase.name} (cache)" if expected.cached else phase.name
                actual = self._cached(phase, seen) if expected.cached else _output(seen, expected.buffer)
                yield _compare(name, phase.layer, expected, actual)

    def _merged(self, outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """With attention's output also where the projection behind it merged the splits for itself."""
        merged = {}
        for phase in self._program.phases:
            config = phase.variant.config
            if isinstance(config, AttentionConfig) and phase.buffers["output"].name not in outputs:
                partial, lse = (outputs[f"{phase.name}.{part}"][None] for part in ("partial", "lse"))
                splits = lse.shape[1] // (config.heads * LSE_WORDS)
                merged[phase.buffers["output"].name] = merge_splits(config.heads, splits, partial, lse).flatten()
        return {**outputs, **merged}

    def _expected(self, phase: Phase, seen: Observation) -> Iterator[_Expected]:
        opcode = phase.variant.opcode
        if opcode is Opcode.MATVEC:
            yield from self._matvec(phase, seen)
        elif opcode is Opcode.ATTENTION:
            yield from self._attention(phase, seen)
        elif opcode is not Opcode.SAMPLE:
            for operand, values in self._outputs(phase, seen).items():
                yield _Expected(phase.buffers[operand].name, values, self._plain_bound(phase, operand, values))

    def _plain_bound(self, phase: Phase, operand: str, values: torch.Tensor) -> torch.Tensor:
        """Of embeddings and norms: the sums' order, and the rounding of what is rounded."""
        rounded = phase.buffers[operand].kind is BufferKind.BF16
        return _SUMS * values.abs().max() + (BF16 if rounded else _SUMS) * values.abs() + 1e-30

    def _outputs(self, phase: Phase, seen: Observation) -> dict[str, torch.Tensor]:
        """What the reference makes of the phase's inputs, by operand, each fp32 [values]."""
        inputs, units = self._inputs(phase, seen), range(phase.units)
        outputs = execute(phase, units, inputs, self._step(seen), self._environment(seen))
        if phase.variant.opcode is Opcode.NORM:
            # Its output may be a part of its buffer: what other phases write there is taken as it was seen.
            assert isinstance(phase.variant.config, NormConfig)
            first, whole = phase.numbers["first"], _output(seen, phase.buffers["output"].name).clone()
            whole[first : first + outputs["output"].shape[1]] = outputs["output"][0]
            return {"output": whole}
        return {operand: values[0] for operand, values in outputs.items()}

    def _inputs(self, phase: Phase, seen: Observation) -> dict[str, torch.Tensor]:
        return {operand: seen.outputs[phase.buffers[operand].name][None] for operand in phase_spans(phase).reads}

    def _matvec(self, phase: Phase, seen: Observation) -> Iterator[_Expected]:
        config = phase.variant.config
        assert isinstance(config, MatvecConfig)
        bound, rows = self._row_bound(phase, config, seen)
        if config.epilogue is Epilogue.GATED:
            gate, up = rows[0::2], rows[1::2]
            activated = apply_activation(config.activation, gate).abs()
            bound = activated * bound[1::2] + _STEEPEST * (up.abs() + bound[1::2]) * bound[0::2]
        elif config.epilogue is Epilogue.ACTIVATED:
            bound = _STEEPEST * bound
        bound = config.scale * bound
        for operand, values in self._outputs(phase, seen).items():
            if operand == "residual_out" and config.post_sum:
                yield _Expected(phase.buffers[operand].name, values, self._plain_bound(phase, operand, values))
                continue
            logits = config.epilogue is Epilogue.LOGITS
            rounding = 0.0 if logits or operand == "residual_out" else BF16
            buffer = "logits" if logits else phase.buffers[operand].name
            yield _Expected(buffer, values, bound + rounding * values.abs() + 1e-30)

    def _row_bound(self, phase: Phase, config: MatvecConfig, seen: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """By how much rounding may move a row of the product, and the rows; both fp32 [rows]."""
        inputs, vectors = self._inputs(phase, seen), matvec_vectors(phase, self._weights)
        operand, scale = prologue(config, matvec_input(phase, inputs), vectors, inputs.get("residual_in"))
        weights = self._weights.matrix(phase.matrices["weights"])
        magnitudes = ((weights.abs() @ operand[0].abs()) * scale).flatten()
        rows = ((weights @ operand[0]) * scale).flatten()
        if vectors.bias is not None:
            magnitudes, rows = magnitudes + vectors.bias.abs(), rows + vectors.bias
        normed = config.post is not None or config.prologue in (Prologue.LAYER, Prologue.MERGE)
        slack = _UNROUNDED_SLACK if not seen.rounds else _NORMED_SLACK if normed else _ROUNDED_SLACK
        return slack * magnitudes, rows

    def _attention(self, phase: Phase, seen: Observation) -> Iterator[_Expected]:
        config = phase.variant.config
        assert isinstance(config, AttentionConfig)
        inputs, step, environment = self._inputs(phase, seen), self._step(seen), self._environment(seen)
        (token,) = new_tokens(phase, inputs, step, environment)
        new = appended(phase, range(phase.units), inputs, step, environment)
        values = torch.cat([torch.cat((key, value)) for _, _, key, value in new])
        yield _Expected("keys and values", values, _cache_bound(config, token), cached=True)
        values = self._outputs(phase, seen)["output"]
        yield _Expected(phase.buffers["output"].name, values, self._attention_bound(phase, token, seen, values))

    def _attention_bound(self, phase: Phase, token: NewToken, seen: Observation, output: torch.Tensor) -> torch.Tensor:
        config = phase.variant.config
        assert isinstance(config, AttentionConfig) and phase.layer is not None
        window = phase.numbers["window"] or seen.position + 1
        keys, values = (old[:, -window:].float() for old in seen.cache(phase.layer, seen.position + 1))
        normed = _normed(config, token.heads[: config.heads], token.q_norm)
        half = len(token.cos)
        low, high, rest = normed[:, :half], normed[:, half : 2 * half], normed[:, 2 * half :]
        turned = (low * token.cos - high * token.sin, high * token.cos + low * token.sin, rest)
        queries = torch.cat(turned, dim=1).view(config.kv_heads, -1, config.head_dim)
        scores = soft_capped(queries @ keys.transpose(1, 2) * config.scale, config.soft_cap)
        if seen.rounds:
            reach = (queries.abs() * keys.abs().amax(1, keepdim=True)).amax(-1, keepdim=True)
        else:
            reach = 2 * (queries.abs() @ keys.abs().transpose(1, 2)).amax(-1, keepdim=True)
        parts = 0.5 * BF16 if f"{phase.name}.partial" in seen.outputs else 0.0
        moved = torch.expm1(2 * BF16 * config.scale * reach) + BF16 + parts
        spread = scores.softmax(-1) @ values.abs()
        return (moved * spread).flatten() + BF16 * output.abs() + 1e-30

    def _cached(self, phase: Phase, seen: Observation) -> torch.Tensor:
        assert phase.layer is not None
        keys, values = seen.cache(phase.layer, seen.position + 1)
        return torch.cat((keys[:, -1], values[:, -1]), dim=1).float().flatten()

    def _step(self, seen: Observation) -> StepInput:
        cos, sin = self._rope.at(seen.position)
        return StepInput([seen.token], [seen.position], cos[None], sin[None], [Sampling()])

    def _environment(self, seen: Observation) -> Environment:
        def read(layer: int, token: int, kv_head: int, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = seen.cache(layer, end)
            return keys[kv_head, begin:].float(), values[kv_head, begin:].float()

        return Environment(self._weights, read)


def _normed(config: AttentionConfig, heads: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
    """Heads as they are rotated."""
    if norm is None or config.qk_norm is None:
        return heads
    return normalise(config.qk_norm, heads, norm, None, config.qk_norm_eps)


def _cache_bound(config: AttentionConfig, token: NewToken) -> torch.Tensor:
    """Bound of what is appended: head after head, its key and then its value."""
    first_value, half = config.heads + config.kv_heads, len(token.cos)
    keys = _normed(config, token.heads[config.heads : first_value], token.k_norm).abs()
    turned = keys[:, :half] + keys[:, half : 2 * half]
    keys = torch.cat((turned, turned, keys[:, 2 * half :]), dim=1)
    return BF16 * torch.cat((keys, token.values[first_value:].abs()), dim=1).flatten() + 1e-30


def _output(seen: Observation, buffer: str) -> torch.Tensor:
    return seen.outputs[buffer].flatten()


def _compare(name: str, layer: int | None, expected: _Expected, actual: torch.Tensor) -> PhaseCheck:
    difference = (actual - expected.values).abs()
    in_bounds = torch.nan_to_num(difference / expected.bound, nan=math.inf)
    rows = (in_bounds > 1).nonzero().flatten().tolist()
    return PhaseCheck(
        name,
        layer,
        expected.buffer,
        tuple(rows),
        float(in_bounds.max()),
        float(torch.nan_to_num(difference, nan=math.inf).max()),
    )
