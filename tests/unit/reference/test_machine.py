from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.engine.philox import gumbel
from jitmk.errors import ConfigError
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec, RopeKind
from jitmk.program.configs import LSE_WORDS
from jitmk.program.program import BufferKind
from jitmk.reference.machine import ReferenceMachine
from jitmk.reference.ops.sample_filter import Filters
from jitmk.reference.weights import ReferenceWeights
from tests.support.tiny import tiny_spec
from tests.support.truth import mean_kl, relative_error, transformers_logits

IDS = torch.randint(0, 101, (70,), generator=torch.Generator().manual_seed(1)).tolist()
"""A prompt that is longer than the context for which the rope types of `tiny_spec` were pretrained."""


def machine(spec: ModelSpec, **arguments: Any) -> ReferenceMachine:
    return ReferenceMachine(spec, ReferenceWeights(spec, RandomCheckpoint(spec)), **arguments)


def logits_of(spec: ModelSpec, ids: list[int], splits: int) -> torch.Tensor:
    """Logits of a prompt, token by token through the machine."""
    runner, rows = machine(spec, splits=splits), []
    for position, token in enumerate(ids):
        result = runner.step(token, position, want_logits=True, prompt_length=len(ids))
        assert result.logits is not None and result.token == int(result.logits.argmax())
        rows.append(result.logits)
    return torch.stack(rows)


def check_against_truth(spec: ModelSpec, splits: int, ids: list[int] = IDS) -> None:
    """Logits are at least as close to the fp32 truth as transformers' own bf16: the project's tolerance."""
    weights = RandomCheckpoint(spec)
    truth, bf16 = (transformers_logits(spec, weights, ids, dtype) for dtype in (torch.float32, torch.bfloat16))
    logits = logits_of(spec, ids, splits)
    assert relative_error(logits, truth) <= relative_error(bf16, truth)
    assert mean_kl(logits, truth) <= mean_kl(bf16, truth)


CASES: dict[str, dict[str, Any]] = {
    "mha-64": {"num_heads": 4, "num_kv_heads": 4},
    "gqa2-80": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 80},
    "gqa3-96": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 96, "hidden_size": 96},
    "gqa4-128": {"num_heads": 8, "num_kv_heads": 2, "head_dim": 128},
    "gqa8-256": {"num_heads": 8, "num_kv_heads": 1, "head_dim": 256},
    "mqa16-64": {"num_heads": 16, "num_kv_heads": 1},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "tied": {"tied_embeddings": True, "num_layers": 1},
    **{f"rope-{kind.value}": {"rope": kind} for kind in RopeKind},
}


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("case", CASES)
def test_as_close_to_the_truth_as_bf16(case: str, splits: int) -> None:
    check_against_truth(tiny_spec(**CASES[case]), splits)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    attention_bias = draw(st.booleans())  # transformers has one switch for all of attention's biases
    kv_heads = draw(st.sampled_from((1, 2, 4)))
    heads = kv_heads * draw(st.sampled_from((1, 2, 4)))
    return tiny_spec(
        rope=draw(st.sampled_from(RopeKind)),
        vocab_size=draw(st.integers(101, 200)),
        hidden_size=16 * draw(st.integers(2, 6).filter(lambda n: 16 * n % heads == 0)),
        intermediate_size=16 * draw(st.integers(2, 8)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((64, 80, 96, 128))),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=draw(st.booleans()),
    )


@settings(max_examples=6, deadline=None, derandomize=True)
@given(specs(), st.sampled_from((1, 3)))
def test_random_configs(spec: ModelSpec, splits: int) -> None:
    check_against_truth(spec, splits)


def test_the_truth_notices_a_wrong_rope() -> None:
    """The comparison can fail: a model that rotates by other angles is far off."""
    right, wrong = tiny_spec(rope=RopeKind.LINEAR), tiny_spec(rope=RopeKind.YARN)
    weights = RandomCheckpoint(right)
    truth, bf16 = (transformers_logits(right, weights, IDS, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert relative_error(logits_of(wrong, IDS, 1), truth) > 5 * relative_error(bf16, truth)


def test_positions_are_overwritten() -> None:
    spec = tiny_spec()
    once, twice = machine(spec), machine(spec)
    for position, token in enumerate(IDS[:20]):
        once.step(token, position)
        twice.step(token, position)
    for position in range(20, 25):
        twice.step(7, position)
    a, b = (m.step(3, 20, want_logits=True).logits for m in (once, twice))
    assert a is not None and b is not None and torch.equal(a, b)


def test_reset_forgets() -> None:
    spec = tiny_spec()
    used, fresh = machine(spec), machine(spec)
    for position in range(5):
        used.step(1, position)
    used.reset()
    assert used.cache.capacity == 0
    a, b = (m.step(3, 0, want_logits=True).logits for m in (used, fresh))
    assert a is not None and b is not None and torch.equal(a, b)


def test_sampling_draws_with_the_noise_of_the_next_position() -> None:
    spec = tiny_spec()
    sampler = machine(spec, noise=gumbel)
    tokens = set()
    for seed in range(8):
        result = sampler.step(5, 0, temperature=1.5, seed=seed, want_logits=True)
        assert result.logits is not None
        assert result.token == int((result.logits / 1.5 + gumbel(seed, 1, spec.vocab_size)).argmax())
        assert sampler.step(5, 0, temperature=1.5, seed=seed).token == result.token
        tokens.add(result.token)
    assert len(tokens) > 1


def test_filters_restrict_the_draw_and_not_the_logits() -> None:
    spec = tiny_spec()
    sampler, tokens = machine(spec, noise=gumbel), set()
    for seed in range(12):
        result = sampler.step(5, 0, temperature=5.0, seed=seed, filters=Filters(top_k=3), want_logits=True)
        assert result.logits is not None and result.logits.isfinite().all()
        best = result.logits.topk(3).indices
        keys = result.logits / 5.0 + gumbel(seed, 1, spec.vocab_size)
        assert result.token == int(best[keys[best].argmax()])
        tokens.add(result.token)
    assert len(tokens) == 3
    greedy = sampler.step(5, 0, filters=Filters(top_p=0.1), want_logits=True)
    assert greedy.logits is not None and greedy.token == int(greedy.logits.argmax())


def test_sampling_needs_noise() -> None:
    with pytest.raises(ConfigError, match=r"temperature = 0\.5, but this reference machine has no noise"):
        machine(tiny_spec()).step(0, 0, temperature=0.5)


def test_outputs_show_every_buffer() -> None:
    runner = machine(tiny_spec(), splits=2)
    result = runner.step(9, 0, want_logits=True)
    outputs = runner.outputs()
    numbers = [b for b in runner.program.buffers if b.kind is not BufferKind.CANDIDATE]
    assert set(outputs) == {"logits", *(buffer.name for buffer in numbers)}
    for buffer in numbers:
        values = outputs[buffer.name]
        assert values.shape == (buffer.values,) and values.dtype is torch.float32
        if buffer.kind is BufferKind.BF16:
            assert torch.equal(values, values.bfloat16().float())
    assert result.logits is not None and torch.equal(outputs["logits"], result.logits)
    embedding = ReferenceWeights(runner.spec, RandomCheckpoint(runner.spec)).embedding(torch.tensor([9]))[0]
    assert torch.equal(outputs["embed.residual"], embedding)


def test_partial_results_lie_where_the_program_says() -> None:
    """At position 0 only the last split has anything: the new token's value, and its score."""
    runner = machine(tiny_spec(), splits=3)
    runner.step(9, 0)
    outputs = runner.outputs()
    partial = outputs["layers.0.attention.partial"].view(3, 4, 64)
    lse = outputs["layers.0.attention.lse"].view(3, 4 * LSE_WORDS)
    assert (lse[:2] == -torch.inf).all() and lse[2].isfinite().all()
    values = outputs["layers.0.qkv.output"].view(8, 64)[6:]
    assert (partial[:2] == 0).all() and torch.equal(partial[2], values.repeat_interleave(2, dim=0))
