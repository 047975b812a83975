"""Phases of a model by themselves: random inputs, all else poisoned, and the opcode in plain torch as the truth.

What is checked runs wherever an `OpRunner` does: on a GPU, and on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from jitmk.engine.arena import load_weights
from jitmk.engine.kv_cache import KvCache
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec
from jitmk.program.configs import LSE_WORDS, AttentionConfig, EmbedConfig, MatvecConfig, Prologue
from jitmk.program.isa import Opcode
from jitmk.program.kv_layout import TILE_POSITIONS
from jitmk.program.lowering import lower
from jitmk.program.program import Buffer, BufferKind, Phase, Program
from jitmk.program.rope_layout import rope_rows
from jitmk.program.weights import plan_weights
from jitmk.reference.execute import Environment, Sampling, StepInput, appended, execute
from jitmk.reference.weights import ReferenceWeights
from tests.support.closeness import assert_close
from tests.support.op_runner import Data, OpRunner, Outcome, Step
from tests.support.phases import OUTPUTS, inputs_of, isolate

_SKIPPED = (Opcode.SAMPLE, Opcode.ATTENTION_REDUCE, Opcode.NO_OP)
"""Opcodes whose inputs cannot be just any numbers, and the one that does nothing."""

_EXACT = (Opcode.COPY, Opcode.ZERO, Opcode.KV_APPEND, Opcode.BARRIER)


def phase_groups(program: Program) -> Iterator[tuple[str, ...]]:
    """Names of phases that fill a buffer together, one group for each kind that the program has."""
    groups: dict[str, list[Phase]] = {}
    for phase in program.phases:
        if phase.variant.opcode not in _SKIPPED:
            written = phase.buffers.get("output", phase.buffers.get("residual_out"))
            assert written is not None, phase
            groups.setdefault(written.name, []).append(phase)
    seen = set()
    for phases in groups.values():
        kind = tuple((phase.variant, tuple(sorted(phase.numbers.items()))) for phase in phases)
        if kind not in seen:
            seen.add(kind)
            yield tuple(phase.name for phase in phases)


class ModelPhases:
    """A model with random weights and a random past, whose phases are checked one by one.

    Args:
        spec: the model.
        capacity: positions of the cache.
        device: where they are run.
        far: how far from 0 the scores of a position are, in about 23 units of log2 where heads have 64 dims; -1 for the
            new one.
        seed: of everything that is random.

    Attributes:
        spec: the model.
        rope: its tables, as the device reads them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        capacity: int,
        device: torch.device,
        seed: int = 1,
        far: Callable[[int], float] | None = None,
    ) -> None:
        self.spec = spec
        self._device = device
        self._random = torch.Generator().manual_seed(seed)
        self._capacity = capacity
        source = RandomCheckpoint(spec, seed)
        self._plan = plan_weights(spec)
        self._arena = load_weights(self._plan, source, device, progress=False)
        self._weights = ReferenceWeights(spec, source)
        shape = (spec.num_layers, spec.num_kv_heads, capacity, spec.head_dim)
        self._keys, self._values = self._normal(*shape), self._normal(*shape)
        self._far = far
        if far is not None:
            for position in range(capacity):
                self._set_slow_dims(self._keys[:, :, position], far(position))
        self._cos, self._sin = rope_rows(spec, range(capacity))
        self.rope = torch.stack((self._cos, self._sin), dim=-1).contiguous().to(device)

    def check(
        self,
        runner: OpRunner,
        names: tuple[str, ...],
        position: int,
        *,
        splits: int = 1,
        fused: bool = True,
        token: int | None = None,
    ) -> None:
        """Runs a group of phases for a token at a position.

        Args:
            names: one of `phase_groups`.
            splits: parts of the context.
            fused: as for `lower`.
            token: that is decoded; a random one if it is not given.

        Raises:
            AssertionError: what they computed is not close to the truth, or they wrote elsewhere.
        """
        program = isolate(lower(self.spec, splits, fused=fused), *names)
        inputs = {buffer.name: self._input(program, buffer, position) for buffer in inputs_of(program)}
        cache, before = self.cache(position), self.cache(position)
        if token is None:
            token = int(torch.randint(self.spec.vocab_size, (), generator=self._random))
        data = Data(self._arena.weights, self._arena.constants, cache.tensor, self.rope)
        outcome = runner.run(program, self._plan, inputs, data, Step(token, position))
        step = StepInput(
            [token], [position], self._cos[position, None], self._sin[position, None], [Sampling(0.0, None)]
        )
        env = Environment(self._weights, partial(self._read, position), torch.float64)
        expected: dict[str, torch.Tensor] = {}
        for phase in program.phases:
            operands = {name: inputs[b.name][None] for name, b in phase.buffers.items() if name not in OUTPUTS}
            for operand, values in execute(phase, range(phase.units), operands, step, env).items():
                whole = expected.setdefault(operand, torch.full((phase.buffers[operand].values,), torch.nan))
                _put(phase, operand, values[0].float(), whole)
            for _, kv_head, key, value in appended(phase, range(phase.units), operands, step, env):
                assert phase.layer is not None
                self._check_append(phase, cache, before, kv_head, position, key.float(), value.float())
        _check_outputs(program, outcome, expected, f"{', '.join(names)} at position {position}, {splits} splits")
        assert torch.equal(cache.tensor.view(torch.int16), before.tensor.view(torch.int16)), "stray writes to the cache"

    def cache(self, position: int) -> KvCache:
        """A cache with the positions before `position`. What does not count must not matter, or must be finite.

        Keys that do not count may be anything. Values beside them in a tile meet a probability of zero, so they may be
        any number; no other tile is looked at.
        """
        cache = KvCache(self.spec, self._capacity, self._device)
        end = (position // TILE_POSITIONS + 1) * TILE_POSITIONS
        for layer, of_layer in enumerate(self.spec.layers):
            first = max(0, position + 1 - of_layer.window) if of_layer.window else 0
            keys, values = self._keys[layer].clone(), self._values[layer].clone()
            keys[:, :first], keys[:, position:] = torch.nan, torch.nan
            values[:, :first], values[:, position:] = 2.0**100, 2.0**100
            values[:, : first // TILE_POSITIONS * TILE_POSITIONS], values[:, end:] = torch.nan, torch.nan
            cache.write(layer, 0, keys.to(self._device), values.to(self._device))
        return cache

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._random).bfloat16().float()

    def _input(self, program: Program, buffer: Buffer, position: int) -> torch.Tensor:
        """Values for a buffer that phases read; queries are large, so that some positions matter more than others."""
        if any(buffer is phase.buffers.get("appended") for phase in program.phases):
            return torch.full((buffer.values,), float(position))
        merging = [phase for phase in program.phases if buffer is phase.buffers.get("lse")]
        if merging:
            return self._logarithms(merging[0])
        values = torch.randn(buffer.values, generator=self._random)
        if buffer.values == self.spec.qkv_rows:
            queries = values[: self.spec.attention_size].view(-1, self.spec.head_dim)
            queries *= 2
            if self._far is not None:
                self._set_slow_dims(queries, 8.0)
                keys = values[self.spec.attention_size :].view(-1, self.spec.head_dim)[: self.spec.num_kv_heads]
                self._set_slow_dims(keys, self._far(-1))
        return values.bfloat16().float() if buffer.kind is BufferKind.BF16 else values

    @staticmethod
    def _set_slow_dims(heads: torch.Tensor, value: float) -> None:
        """Sets the dims of heads that rotate least. What roundings do to them, they do to all scores alike."""
        half = heads.shape[-1] // 2
        for end in (half, 2 * half):
            heads[..., end - 8 : end] = value

    def _logarithms(self, phase: Phase) -> torch.Tensor:
        """Of the normalisers of splits, in units of log2: far apart, so that some vanish beside others, and without a
        position in some splits, but not in all."""
        heads = phase.buffers["lse"].values // (phase.splits * LSE_WORDS)
        lse = 8 * torch.randn((phase.splits, heads), generator=self._random)
        empty = torch.rand((phase.splits, heads), generator=self._random) < 0.3
        empty[torch.randint(phase.splits, (heads,), generator=self._random), torch.arange(heads)] = False
        return lse.masked_fill(empty, -torch.inf).flatten().repeat_interleave(LSE_WORDS)

    def _read(
        self, position: int, layer: int, token: int, kv_head: int, begin: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert token == 0 and begin >= 0 and end <= position
        return self._keys[layer, kv_head, begin:end], self._values[layer, kv_head, begin:end]

    def _check_append(
        self,
        phase: Phase,
        after: KvCache,
        before: KvCache,
        kv_head: int,
        position: int,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> None:
        """The new key and value are where they belong; then `before` gets them too."""
        assert phase.layer is not None
        keys, values = (part[:, position].cpu() for part in after.read(phase.layer, position + 1))
        kind = "moved" if phase.variant.opcode in _EXACT else "rounded"
        assert_close(kind, keys[kv_head], key, f"key of {phase.name}, head {kv_head}, position {position}")
        assert_close("moved", values[kv_head], value, f"value of {phase.name}, head {kv_head}, position {position}")
        old_keys, old_values = (part[:, position : position + 1] for part in before.read(phase.layer, position + 1))
        old_keys[kv_head, 0], old_values[kv_head, 0] = keys[kv_head], values[kv_head]
        before.write(phase.layer, position, old_keys, old_values)


def _put(phase: Phase, operand: str, values: torch.Tensor, whole: torch.Tensor) -> None:
    """Values in the order of the units that own them, where they lie in the buffer."""
    if phase.buffers[operand].kind is BufferKind.CANDIDATE:
        whole.copy_(values)
        return
    spans = [span for unit in range(phase.units) for span in phase.writes(unit) if span.operand == operand]
    whole[torch.cat([torch.arange(span.begin, span.end) for span in spans])] = values


def _check_outputs(program: Program, outcome: Outcome, expected: dict[str, torch.Tensor], what: str) -> None:
    phase = program.phases[-1]
    config = phase.variant.config
    if isinstance(config, AttentionConfig):
        check_attention(phase, outcome.outputs, expected, what)
        return
    if outcome.logits is not None:
        assert_close(_kind(phase, True), outcome.logits, expected["output"], what)
        return
    assert outcome.outputs.keys() == expected.keys(), what
    for operand, values in outcome.outputs.items():
        fp32 = phase.buffers[operand].kind is BufferKind.FP32
        summed = operand == "residual_out" and phase.variant.opcode is Opcode.MATVEC
        assert_close("fp32 sum" if summed else _kind(phase, fp32), values, expected[operand], f"{operand} of {what}")


def _kind(phase: Phase, fp32: bool) -> str:
    """A row of the table of tolerances."""
    opcode, config = phase.variant.opcode, phase.variant.config
    plain = isinstance(config, EmbedConfig) and config.scale == 1 and not config.positions
    if opcode in _EXACT or plain:
        return "moved"
    if isinstance(config, MatvecConfig):
        rounded_again = config.prologue in (Prologue.LAYER, Prologue.MERGE) or config.post is not None
        if rounded_again:
            return "fp32 sum of rounded values" if fp32 else "bf16 of a sum of rounded values"
        return "fp32 sum" if fp32 else "bf16 of a sum"
    return "fp32 sum" if fp32 else "rounded"


def check_attention(
    phase: Phase, actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str
) -> None:
    """Each head of each split by itself: the tolerance is relative to its size."""
    config = phase.variant.config
    assert isinstance(config, AttentionConfig) and actual.keys() == expected.keys()
    shape = (phase.splits * config.heads, config.head_dim)
    for index, pair in enumerate(zip(actual["output"].view(shape), expected["output"].view(shape), strict=True)):
        split, head = divmod(index, config.heads)
        assert_close("attention", *pair, f"{what}, split {split}, head {head}")
    if phase.splits > 1:
        assert_close("softmax state", actual["lse_out"], expected["lse_out"], what)
