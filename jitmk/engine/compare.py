"""Whether a backend's step is what the program says: each phase recomputed from the values that it was given.

Comparing two backends end to end says little: rounding errors of early phases grow through the later ones. So each
phase is held to the reference opcode applied to *this backend's own* inputs of that phase; what remains is the
rounding of one phase, and it has a bound. In the bounds below, |a| is taken elementwise. Rounding to bf16 is off by at
most 2^-8, relative to the number, so two roundings of nearly the same number are at most 2^-7 apart.

    projection   slack * |W| |x| / rms + 2^-7 |y|. slack is 2^-14 where x is rounded to bf16 as in the reference: only
                 the order of fp32 sums differs. It is 2^-7 for the torch backend, which on a CPU rounds neither its
                 input nor the norm's product.
    gate and up  the projection's bound through f(g) u: |f(g)| du + 1.1 |u| dg, for |silu'| is at most 1.1
    residual     the projection's bound; it is kept in fp32
    cache        2^-7 (|k1| + |k2|): the two terms of a rotation
    attention    d = 2^-7 scale |q||k| is by how much rounding moves a score, where |q||k| is the largest product of one
                 component (only a rounding that fp32 noise tips over differs), for the torch backend twice the largest
                 sum of all. A probability moves by the factor exp(2d); probabilities and the result are rounded too:
                 (exp(2d) - 1 + 2^-7) sum(p |v|) + 2^-7 |y|
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.program.program import AttentionConfig, Epilogue, MatvecConfig, Phase
from jitmk.reference.execute import Environment, Sampling, StepInput, appended, execute
from jitmk.reference.rope_rows import RopeRows
from jitmk.reference.weights import StepWeights

BF16 = 2.0**-7
"""Largest relative distance of two roundings to bf16 of nearly the same number."""

_ROUNDED_SLACK = 2.0**-14
_UNROUNDED_SLACK = 2.0**-7
_SILU_SLOPE = 1.1

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
        for phase in self._program.phases:
            for expected in self._expected(phase, seen):
                name = f"{phase.name} (cache)" if expected.cached else phase.name
                actual = self._cached(phase, seen) if expected.cached else _output(seen, expected.buffer)
                yield _compare(name, phase.layer, expected, actual)

    def _expected(self, phase: Phase, seen: Observation) -> Iterator[_Expected]:
        opcode = phase.variant.opcode
        if opcode is Opcode.EMBED:
            outputs = execute(phase, range(phase.units), {}, self._step(seen), self._environment(seen))
            for operand, values in outputs.items():
                yield _Expected(phase.buffers[operand].name, values[0], BF16 * values[0].abs())
        elif opcode is Opcode.MATVEC:
            yield from self._matvec(phase, seen)
        elif opcode is Opcode.ATTENTION:
            yield from self._attention(phase, seen)

    def _matvec(self, phase: Phase, seen: Observation) -> Iterator[_Expected]:
        config = phase.variant.config
        assert isinstance(config, MatvecConfig) and phase.weights is not None
        inputs = {name: seen.outputs[phase.buffers[name].name][None] for name in _input_operands(phase)}
        outputs = execute(phase, range(phase.units), inputs, self._step(seen), self._environment(seen))
        slack = _ROUNDED_SLACK if seen.rounds else _UNROUNDED_SLACK
        bound = slack * self._magnitudes(phase, config, inputs["input"][0])
        if config.epilogue is Epilogue.GATED:
            raw = self._gate_and_up(phase, config, inputs["input"][0])
            gate, up = raw[0::2], raw[1::2]
            activated = torch.nn.functional.silu(gate).abs()
            bound = activated * bound[1::2] + _SILU_SLOPE * (up.abs() + bound[1::2]) * bound[0::2]
        for operand, values in outputs.items():
            logits = config.epilogue is Epilogue.LOGITS
            rounding = 0.0 if logits or operand == "residual_out" else BF16
            buffer = "logits" if logits else phase.buffers[operand].name
            yield _Expected(buffer, values[0], bound + rounding * values[0].abs() + 1e-30)

    def _magnitudes(self, phase: Phase, config: MatvecConfig, x: torch.Tensor) -> torch.Tensor:
        """|W| |prologue(x)| / rms + |b|, fp32 [rows]: what errors of a row's dot product are proportional to."""
        assert phase.weights is not None
        operand = x.abs()
        if phase.norm is not None:
            scale = torch.rsqrt(x.square().mean() + config.norm_eps)
            operand = operand * self._weights.vector(phase.norm).abs() * scale
        magnitudes = self._weights.matrix(phase.weights).abs() @ operand
        return magnitudes if phase.bias is None else magnitudes + self._weights.vector(phase.bias).abs()

    def _gate_and_up(self, phase: Phase, config: MatvecConfig, x: torch.Tensor) -> torch.Tensor:
        """The rows of gate and up before the activation, fp32 [rows]."""
        assert phase.weights is not None and phase.norm is not None
        scale = torch.rsqrt(x.square().mean() + config.norm_eps)
        rows = self._weights.matrix(phase.weights) @ (x * self._weights.vector(phase.norm)) * scale
        return rows if phase.bias is None else rows + self._weights.vector(phase.bias)

    def _attention(self, phase: Phase, seen: Observation) -> Iterator[_Expected]:
        config = phase.variant.config
        assert isinstance(config, AttentionConfig) and phase.layer is not None
        qkv = seen.outputs[phase.buffers["input"].name]
        step, environment = self._step(seen), self._environment(seen)
        units = range(phase.units)
        new = appended(phase, units, qkv[None], step, environment)
        values = torch.cat([torch.cat((key, value)) for _, _, key, value in new])
        yield _Expected("keys and values", values, self._cache_bound(config, qkv), cached=True)
        values = execute(phase, units, {"input": qkv[None]}, step, environment)["output"][0]
        yield _Expected(phase.buffers["output"].name, values, self._attention_bound(config, phase.layer, seen, values))

    def _cache_bound(self, config: AttentionConfig, qkv: torch.Tensor) -> torch.Tensor:
        """Bound of what is appended: head after head, its key and then its value."""
        heads = qkv.abs().view(-1, config.head_dim)
        keys, values = torch.split(heads[config.heads :], config.kv_heads)
        half = config.rotary_dim // 2
        turned = keys[:, :half] + keys[:, half : config.rotary_dim]
        keys = torch.cat((turned, turned, keys[:, config.rotary_dim :]), dim=1)
        return BF16 * torch.cat((keys, values), dim=1).flatten() + 1e-30

    def _attention_bound(
        self, config: AttentionConfig, layer: int, seen: Observation, output: torch.Tensor
    ) -> torch.Tensor:
        keys, values = seen.cache(layer, seen.position + 1)
        ratio, d = config.heads // config.kv_heads, config.head_dim
        queries = self._rotated_queries(config, layer, seen).view(config.kv_heads, ratio, d)
        probabilities = (queries @ keys.float().transpose(1, 2) * config.scale).softmax(-1)
        if seen.rounds:
            reach = (queries.abs() * keys.float().abs().amax(1, keepdim=True)).amax(-1, keepdim=True)
        else:
            reach = 2 * (queries.abs() @ keys.float().abs().transpose(1, 2)).amax(-1, keepdim=True)
        moved = torch.expm1(2 * BF16 * config.scale * reach) + BF16
        spread = probabilities @ values.float().abs()
        return (moved * spread).flatten() + BF16 * output.abs() + 1e-30

    def _rotated_queries(self, config: AttentionConfig, layer: int, seen: Observation) -> torch.Tensor:
        cos, sin = self._rope.at(seen.position)
        heads = seen.outputs[f"layers.{layer}.qkv.output"].view(-1, config.head_dim)[: config.heads]
        half = len(cos)
        low, high, rest = heads[:, :half], heads[:, half : 2 * half], heads[:, 2 * half :]
        return torch.cat((low * cos - high * sin, high * cos + low * sin, rest), dim=1)

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


def _input_operands(phase: Phase) -> list[str]:
    return [name for name in ("input", "residual_in") if name in phase.buffers]


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
