"""One instruction on the CPU: from a phase and some of its units to the opcode in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from jitmk.program.isa import Opcode
from jitmk.program.program import AttentionConfig, AttentionReduceConfig, EmbedConfig, MatvecConfig, Phase
from jitmk.reference.ops.attention import NewToken, ReadKv, attention, new_key_value
from jitmk.reference.ops.attention_reduce import attention_reduce
from jitmk.reference.ops.embed import embed
from jitmk.reference.ops.matvec import matvec
from jitmk.reference.ops.sample import best_candidate, sample, sampling_keys
from jitmk.reference.ops.sample_filter import NO_FILTERS, Filters, allowed
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
        cos, sin: fp32 [tokens, rotary_dim / 2], of those positions.
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
            "residual_in" holds the units' rows only; SAMPLE has `CANDIDATE_KEYS` and `CANDIDATE_IDS`.
        step: tokens and positions.
        env: weights and cache.

    Returns:
        What the opcode returns: by operand, [tokens, values of the units].
    """
    return _EXECUTE[phase.variant.opcode](phase, units, inputs, step, env)


def _embed(phase: Phase, units: range, inputs: Inputs, step: StepInput, env: Environment) -> dict[str, torch.Tensor]:
    config = phase.variant.config
    assert isinstance(config, EmbedConfig)
    return embed(config, units, env.weights.embedding(torch.tensor(step.tokens)))


def _matvec(phase: Phase, units: range, inputs: Inputs, step: StepInput, env: Environment) -> dict[str, torch.Tensor]:
    config = phase.variant.config
    assert isinstance(config, MatvecConfig) and phase.weights is not None
    return matvec(
        config,
        units,
        inputs["input"],
        env.weights.matrix(phase.weights),
        norm=None if phase.norm is None else env.weights.vector(phase.norm),
        bias=None if phase.bias is None else env.weights.vector(phase.bias),
        residual=inputs.get("residual_in"),
        sums=env.sums,
    )


def new_tokens(phase: Phase, qkv: torch.Tensor, step: StepInput, env: Environment) -> list[NewToken]:
    """What an attention phase knows of each sequence's new token; qkv is [tokens, qkv_rows]."""
    assert phase.layer is not None
    reads: list[ReadKv] = [partial(env.read_kv, phase.layer, token) for token in range(len(step.tokens))]
    return [
        NewToken(qkv[token], step.cos[token], step.sin[token], position, reads[token])
        for token, position in enumerate(step.positions)
    ]


def appended(
    phase: Phase, units: range, qkv: torch.Tensor, step: StepInput, env: Environment
) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """What units of an attention phase append to the cache: (token, key/value head, key, value).

    Of the units that hold a head's new token, the one of the first head group appends.
    """
    config = phase.variant.config
    assert isinstance(config, AttentionConfig)
    groups = [unit // phase.splits for unit in units if unit % phase.splits == phase.splits - 1]
    kv_heads = [config.group_kv_head(group) for group in groups if group % config.groups_per_kv_head == 0]
    return [
        (token, kv_head, *new_key_value(config, kv_head, new))
        for token, new in enumerate(new_tokens(phase, qkv, step, env))
        for kv_head in kv_heads
    ]


def _attention(
    phase: Phase, units: range, inputs: Inputs, step: StepInput, env: Environment
) -> dict[str, torch.Tensor]:
    config = phase.variant.config
    assert isinstance(config, AttentionConfig)
    return attention(config, units, phase.splits, new_tokens(phase, inputs["input"], step, env), sums=env.sums)


def _reduce(phase: Phase, units: range, inputs: Inputs, step: StepInput, env: Environment) -> dict[str, torch.Tensor]:
    config = phase.variant.config
    assert isinstance(config, AttentionReduceConfig)
    return attention_reduce(config, units, phase.splits, inputs["input"])


def _sample(phase: Phase, units: range, inputs: Inputs, step: StepInput, env: Environment) -> dict[str, torch.Tensor]:
    return sample(inputs[CANDIDATE_KEYS], inputs[CANDIDATE_IDS])


_EXECUTE = {
    Opcode.EMBED: _embed,
    Opcode.MATVEC: _matvec,
    Opcode.ATTENTION: _attention,
    Opcode.ATTENTION_REDUCE: _reduce,
    Opcode.SAMPLE: _sample,
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
