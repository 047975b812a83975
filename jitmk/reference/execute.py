"""One instruction on the CPU: from a phase and some of its units to the opcode in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from jitmk.program.configs import (
    ActivateConfig,
    AddConfig,
    AttentionConfig,
    AttentionReduceConfig,
    BarrierConfig,
    CopyConfig,
    EmbedConfig,
    GatedActivateConfig,
    KvAppendConfig,
    MatvecConfig,
    NoOpConfig,
    NormConfig,
    Prologue,
    ResidualAddConfig,
    ResidualNormAddConfig,
    RopeConfig,
    SampleConfig,
    ZeroConfig,
)
from jitmk.program.isa import NO_OPERAND, Opcode
from jitmk.program.program import Phase
from jitmk.reference.ops.activate import activate
from jitmk.reference.ops.add import add
from jitmk.reference.ops.attention import NewToken, ReadKv, attention, new_key_value
from jitmk.reference.ops.attention_reduce import attention_reduce, merge_splits
from jitmk.reference.ops.barrier import barrier
from jitmk.reference.ops.copy import copy
from jitmk.reference.ops.embed import embed
from jitmk.reference.ops.gated_activate import gated_activate
from jitmk.reference.ops.kv_append import Append, kv_append, kv_appended
from jitmk.reference.ops.matvec import MatvecVectors, matvec
from jitmk.reference.ops.norm import norm
from jitmk.reference.ops.residual_add import residual_add
from jitmk.reference.ops.residual_norm_add import residual_norm_add
from jitmk.reference.ops.rope import rope
from jitmk.reference.ops.sample import best_candidate, sample, sampling_keys
from jitmk.reference.ops.sample_filter import NO_FILTERS, Filters, allowed
from jitmk.reference.ops.zero import zero
from jitmk.reference.weights import StepWeights

NoiseFunction = Callable[[int, int, int], torch.Tensor]
"""(seed, position, vocab_size) -> Gumbel noise of every token, fp32 [vocab_size]: `jitmk.engine.philox.gumbel`.

The position is that of the token that is drawn.
"""

CANDIDATE_KEYS, CANDIDATE_IDS = "keys", "ids"
"""Names of the two inputs of SAMPLE: the candidates' keys, fp32 [tokens, n], and token ids, int64 [tokens, n]."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 for the largest logit.
        noise: fp32 [vocab_size]; None when greedy.
        filters: what a draw is restricted to.
    """

    temperature: float = 0.0
    noise: torch.Tensor | None = None
    filters: Filters = NO_FILTERS


@dataclass(frozen=True)
class StepInput:
    """What a step is given from outside.

    Attributes:
        tokens, positions: of each sequence, the token to decode and its position.
        cos, sin: fp32 [tokens, rope_stride], the rows of the rope tables of those positions.
        sampling: of each sequence.
    """

    tokens: list[int]
    positions: list[int]
    cos: torch.Tensor
    sin: torch.Tensor
    sampling: list[Sampling]


ReadLayerKv = Callable[[int, int, int, int, int], tuple[torch.Tensor, torch.Tensor]]
"""(layer, token, key/value head, begin, end) -> keys and values, each [end - begin, head_dim]."""


@dataclass(frozen=True)
class Environment:
    """What instructions use besides words.

    Attributes:
        weights: of the model.
        read_kv: reads the cache.
        sums: the type in which products are added (see `ops`).
    """

    weights: StepWeights
    read_kv: ReadLayerKv
    sums: torch.dtype = torch.float32


Inputs = Mapping[str, torch.Tensor]


def execute(phase: Phase, units: range, inputs: Inputs, step: StepInput, env: Environment) -> dict[str, torch.Tensor]:
    """Computes some units of a phase.

    Args:
        phase: what to compute.
        units: which part of it.
        inputs: by operand, the whole buffer [tokens, values] (what the units do not read may hold anything);
            "residual_in" holds what the units read of it; SAMPLE has `CANDIDATE_KEYS` and `CANDIDATE_IDS`.
        step: tokens and positions.
        env: weights and cache.

    Returns:
        By operand, [tokens, values of the units]: what the phase has buffers for, and SAMPLE's "token".
    """
    outputs = _EXECUTE[phase.variant.opcode](_Call(phase, units, inputs, step, env), phase.variant.config)
    return {name: values for name, values in outputs.items() if name in phase.buffers or name == "token"}


@dataclass(frozen=True)
class _Call:
    """The arguments of `execute`."""

    phase: Phase
    units: range
    inputs: Inputs
    step: StepInput
    env: Environment

    def vector(self, operand: str) -> torch.Tensor | None:
        name = self.phase.vectors.get(operand)
        return None if name is None else self.env.weights.vector(name)

    def weight(self, operand: str) -> torch.Tensor:
        return self.env.weights.vector(self.phase.vectors[operand])

    def angles(self, rotary_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of the phase's rope, each [tokens, rotary_dim / 2], or [tokens, 0] where it has none."""
        begin = self.phase.numbers["rope"]
        columns = slice(0, 0) if begin == NO_OPERAND else slice(begin, begin + rotary_dim // 2)
        return self.step.cos[:, columns], self.step.sin[:, columns]


Outputs = dict[str, torch.Tensor]


def _embed(call: _Call, config: EmbedConfig) -> Outputs:
    weights, step = call.env.weights, call.step
    positions = weights.position_embedding(torch.tensor(step.positions)) if config.positions else None
    return embed(config, call.units, weights.embedding(torch.tensor(step.tokens)), positions)


def _matvec(call: _Call, config: MatvecConfig) -> Outputs:
    return matvec(
        config,
        call.units,
        matvec_input(call.phase, call.inputs),
        call.env.weights.matrix(call.phase.matrices["weights"]),
        matvec_vectors(call.phase, call.env.weights),
        residual=call.inputs.get("residual_in"),
        sums=call.env.sums,
    )


def matvec_input(phase: Phase, inputs: Inputs) -> torch.Tensor:
    """The vector that a matvec phase begins with, [tokens, columns]: with the prologue MERGE, the splits merged."""
    config = phase.variant.config
    assert isinstance(config, MatvecConfig)
    if config.prologue is not Prologue.MERGE:
        return inputs["input"]
    return merge_splits(config.heads, phase.splits, inputs["input"], inputs["lse"]).flatten(1)


def matvec_vectors(phase: Phase, weights: StepWeights) -> MatvecVectors:
    """The constant vectors of a matvec phase."""
    return MatvecVectors(**{operand: weights.vector(name) for operand, name in phase.vectors.items()})


def new_tokens(phase: Phase, inputs: Inputs, step: StepInput, env: Environment) -> list[NewToken]:
    """What an attention phase knows of each sequence's new token; arguments as for `execute`."""
    call, config, layer = _Call(phase, range(0), inputs, step, env), phase.variant.config, phase.layer
    assert isinstance(config, AttentionConfig) and layer is not None
    reads: list[ReadKv] = [partial(call.env.read_kv, layer, token) for token in range(len(step.tokens))]
    cos, sin = call.angles(config.rotary_dim)
    heads, values = (call.inputs[name].view(len(step.tokens), -1, config.head_dim) for name in ("input", "value_input"))
    norms = call.vector("q_norm"), call.vector("k_norm")
    return [
        NewToken(heads[token], values[token], cos[token], sin[token], position, reads[token], *norms)
        for token, position in enumerate(step.positions)
    ]


def appended(phase: Phase, units: range, inputs: Inputs, step: StepInput, env: Environment) -> list[Append]:
    """What units of a phase append to the cache.

    Of the units of attention that hold a head's new token, the one of the first head group appends.
    """
    config = phase.variant.config
    if isinstance(config, KvAppendConfig):
        return kv_append(config, units, inputs["input"], inputs["value_input"])
    if not isinstance(config, AttentionConfig) or not config.append:
        return []
    groups = [unit // phase.splits for unit in units if unit % phase.splits == phase.splits - 1]
    kv_heads = [config.group_kv_head(group) for group in groups if group % config.groups_per_kv_head == 0]
    return [
        (token, kv_head, *new_key_value(config, kv_head, new, env.sums))
        for token, new in enumerate(new_tokens(phase, inputs, step, env))
        for kv_head in kv_heads
    ]


def _attention(call: _Call, config: AttentionConfig) -> Outputs:
    tokens = new_tokens(call.phase, call.inputs, call.step, call.env)
    window = call.phase.numbers["window"]
    return attention(config, call.units, call.phase.splits, tokens, window=window, sums=call.env.sums)


def _reduce(call: _Call, config: AttentionReduceConfig) -> Outputs:
    return attention_reduce(config, call.units, call.phase.splits, call.inputs["input"], call.inputs["lse"])


def _sample(call: _Call, config: SampleConfig) -> Outputs:
    return sample(call.inputs[CANDIDATE_KEYS], call.inputs[CANDIDATE_IDS])


def _norm(call: _Call, config: NormConfig) -> Outputs:
    first, weight, bias = call.phase.numbers["first"], call.weight("norm"), call.vector("norm_bias")
    return norm(config, call.units, first, call.inputs["input"], weight, bias, sums=call.env.sums)


def _residual_norm_add(call: _Call, config: ResidualNormAddConfig) -> Outputs:
    x, residual = call.inputs["input"], call.inputs["residual_in"]
    weight, bias = call.weight("norm"), call.vector("norm_bias")
    return residual_norm_add(config, call.units, x, residual, weight, bias, sums=call.env.sums)


def _residual_add(call: _Call, config: ResidualAddConfig) -> Outputs:
    return residual_add(config, call.units, call.inputs["input"], call.inputs["residual_in"])


def _rope(call: _Call, config: RopeConfig) -> Outputs:
    return rope(config, call.units, call.inputs["input"], *call.angles(config.rotary_dim))


def _kv_append(call: _Call, config: KvAppendConfig) -> Outputs:
    return kv_appended(call.units, call.step.positions)


def _activate(call: _Call, config: ActivateConfig) -> Outputs:
    return activate(config, call.units, call.inputs["input"])


def _gated_activate(call: _Call, config: GatedActivateConfig) -> Outputs:
    return gated_activate(config, call.units, call.inputs["input"])


def _add(call: _Call, config: AddConfig) -> Outputs:
    return add(config, call.units, call.inputs["input"], call.inputs["other"])


def _copy(call: _Call, config: CopyConfig) -> Outputs:
    return copy(config, call.units, call.phase.numbers["first"], call.inputs["input"])


def _zero(call: _Call, config: ZeroConfig) -> Outputs:
    return zero(config, call.units, len(call.step.tokens))


def _barrier(call: _Call, config: BarrierConfig) -> Outputs:
    return barrier(call.units, len(call.step.tokens))


def _no_op(call: _Call, config: NoOpConfig) -> Outputs:
    return {}


_EXECUTE: dict[Opcode, Callable[[_Call, Any], Outputs]] = {
    Opcode.EMBED: _embed,
    Opcode.MATVEC: _matvec,
    Opcode.ATTENTION: _attention,
    Opcode.ATTENTION_REDUCE: _reduce,
    Opcode.SAMPLE: _sample,
    Opcode.NORM: _norm,
    Opcode.RESIDUAL_NORM_ADD: _residual_norm_add,
    Opcode.RESIDUAL_ADD: _residual_add,
    Opcode.ROPE: _rope,
    Opcode.KV_APPEND: _kv_append,
    Opcode.ACTIVATE: _activate,
    Opcode.GATED_ACTIVATE: _gated_activate,
    Opcode.ADD: _add,
    Opcode.COPY: _copy,
    Opcode.ZERO: _zero,
    Opcode.BARRIER: _barrier,
    Opcode.NO_OP: _no_op,
}


def filtered(logits: torch.Tensor, sampling: list[Sampling]) -> torch.Tensor:
    """Logits with -inf for what the filters of a draw remove; fp32 [tokens, vocab_size], the whole vocabulary."""
    return torch.stack(
        [
            row.masked_fill(~allowed(row, how.temperature, how.filters), -torch.inf)
            if how.temperature > 0 and how.filters.active
            else row
            for row, how in zip(logits, sampling, strict=True)
        ]
    )


def candidates(logits: torch.Tensor, ids: torch.Tensor, sampling: list[Sampling]) -> tuple[torch.Tensor, torch.Tensor]:
    """The best candidate among some tokens of the vocabulary, for each sequence.

    Args:
        logits: fp32 [tokens, n].
        ids: int64 [n], whose logits these are.
        sampling: of each sequence.

    Returns:
        (key fp32 [tokens], token id int64 [tokens]).
    """
    keys = torch.stack(
        [
            sampling_keys(row[None], how.temperature, None if how.noise is None else how.noise[ids])[0]
            for row, how in zip(logits, sampling, strict=True)
        ]
    )
    return best_candidate(keys, ids)
