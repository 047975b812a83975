"""Sampling parameters, logit processing against transformers, and the draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from jitmk.engine.philox import gumbel
from jitmk.engine.sampling import SamplingParams, process_logits, sample
from jitmk.errors import ConfigError, GenerationError, JitmkError
from jitmk.reference.ops.sample_filter import Filters


def theirs(params: SamplingParams) -> Any:
    """transformers' processors in the order in which its generate applies them."""
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(params.repetition_penalty)])
    if not params.greedy:
        processors.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            processors.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            processors.append(TopPLogitsWarper(params.top_p))
        processors.append(MinPLogitsWarper(params.min_p))
    return processors


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.integers(0, 60),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0.0, 0.05, 0.9, 1.0]),
    st.sampled_from([1.0, 1.3, 0.7]),
    st.integers(0, 2**32),
)
def test_processing_agrees_with_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    knobs: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p} if temperature else {}
    params = SamplingParams(temperature=temperature, repetition_penalty=penalty, **knobs)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, generator=generator) * 4
    previous = torch.randint(0, 50, (9,), generator=generator)
    expected = theirs(params)(previous[None], logits[None].clone())[0]
    before = logits.clone()
    assert torch.equal(process_logits(logits, params, previous.tolist()), expected)
    assert torch.equal(logits, before)


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0])
    assert sample(logits, SamplingParams(), 0, []) == (1, None)


def test_greedy_respects_the_repetition_penalty() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0])
    assert sample(logits, SamplingParams(repetition_penalty=1.5), 1, [0])[0] == 1


def test_a_draw_is_the_argmax_of_logits_and_noise() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=0.7, seed=99)
    tokens = [sample(logits, params, position, [])[0] for position in range(20)]
    expected = [int((logits / 0.7 + gumbel(99, position, 1000)).argmax()) for position in range(20)]
    assert tokens == expected
    assert len(set(tokens)) > 10
    assert tokens != [sample(logits, SamplingParams(temperature=0.7, seed=100), p, [])[0] for p in range(20)]


def test_draws_follow_the_softmax_of_the_processed_logits() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -5.0])
    params = SamplingParams(temperature=1.5, top_k=4, seed=7)
    draws = 4000
    counts = torch.zeros(5)
    for position in range(draws):
        counts[sample(logits, params, position, [])[0]] += 1
    kept = logits[:4].div(1.5).softmax(-1) * draws
    assert counts[4] == 0
    # 16.3 is exceeded with probability 0.001 by chance; the seed is fixed, so the outcome is too.
    assert ((counts[:4] - kept).square() / kept).sum().item() < 16.3


@pytest.mark.parametrize("knobs", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_keep_at_least_the_best_token(knobs: dict[str, Any]) -> None:
    logits = torch.tensor([0.1, 0.3, 0.2])
    for position in range(5):
        assert sample(logits, SamplingParams(temperature=5.0, **knobs), position, [])[0] == 1


def test_logprobs_are_those_of_the_model() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=2.0, repetition_penalty=1.4, top_k=3, logprobs=4)
    token, info = sample(logits, params, 5, [1, 2, 3])
    raw = logits.log_softmax(-1)
    assert info is not None and info.token == token
    assert info.logprob == pytest.approx(raw[token].item())
    assert [t for t, _ in info.top] == raw.topk(4).indices.tolist()
    assert [p for _, p in info.top] == pytest.approx(raw.topk(4).values.tolist())
    only_chosen = sample(logits, SamplingParams(logprobs=0), 5, [])[1]
    assert only_chosen is not None and only_chosen.top == ()
    everything = sample(logits, SamplingParams(logprobs=99), 5, [])[1]
    assert everything is not None and len(everything.top) == 30


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize(
    "knobs", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2, "top_p": 0.5, "min_p": 0.1}]
)
def test_logits_that_are_not_numbers_are_an_error(bad: float, knobs: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match="position 3 are not numbers"):
        sample(torch.full((4,), bad), SamplingParams(**knobs), 3, [])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be an integer, 1 or more"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": 1e-9}, "0.0001"),
        ({"temperature": math.nan}, "temperature=nan must be a finite number"),
        ({"temperature": "1"}, "temperature='1'"),
        ({"temperature": 1.0, "top_p": 2}, "top_p=2 must be a probability"),
        ({"temperature": 1.0, "top_p": 0}, "top_p=0"),
        ({"temperature": 1.0, "top_p": math.inf}, "top_p=inf"),
        ({"temperature": 1.0, "min_p": -0.1}, "min_p=-0.1"),
        ({"temperature": 1.0, "top_k": -1}, "top_k=-1.*0 turns it off"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, r"less than 2\^64"),
        ({"stop": ""}, "stop=''"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"stop": 5}, "stop=5"),
        ({"stop": [b"x"]}, "stop="),
        ({"stop_token_ids": 7}, "stop_token_ids=7 must be a list"),
        ({"stop_token_ids": [-1]}, "stop_token_ids=-1"),
        ({"logprobs": -1}, "logprobs=-1.*None turns it off"),
        ({"logprobs": True}, "logprobs=True"),
        ({"top_p": 0.9}, r"top_p=0.9 restricts a draw, but temperature=0"),
        ({"temperature": 0, "top_k": 5, "min_p": 0.1}, r"top_k=5, min_p=0.1"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(GenerationError, match=says):
        SamplingParams(**values)
    with pytest.raises(JitmkError):
        SamplingParams.resolve({}, **values)


def test_values_are_normalised() -> None:
    values: dict[str, Any] = {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5)}
    values |= {"stop": "x", "stop_token_ids": [4, 4, 2]}
    params = SamplingParams(**values)
    assert type(params.max_new_tokens) is int and type(params.temperature) is float
    assert params.stop == ("x",) and params.stop_token_ids == (4, 2)
    assert SamplingParams(top_k=1).greedy
    assert SamplingParams(eos_token_ids=(1,), stop_token_ids=(2,)).ending_token_ids == {1, 2}


def test_what_the_device_can_sample_alone() -> None:
    assert not SamplingParams().needs_logits
    assert not SamplingParams(temperature=0.8, seed=3, stop=("x",)).needs_logits
    knobs: list[dict[str, Any]] = [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}]
    for values in knobs:
        assert not SamplingParams(temperature=0.8, **values).needs_logits
        assert SamplingParams(temperature=0.8, logprobs=0, **values).needs_logits
    assert SamplingParams(repetition_penalty=1.1).needs_logits
    assert SamplingParams(logprobs=0).needs_logits


def test_filters_are_those_of_a_draw() -> None:
    assert SamplingParams(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1).filters == Filters(5, 0.9, 0.1)
    assert not SamplingParams(temperature=0.8).filters.active
    assert not SamplingParams(top_k=1).filters.active, "greedy decoding has nothing to filter"


FILE = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "eos_token_id": [5, 6], "max_length": 20}


def test_resolve_is_greedy_by_default() -> None:
    assert SamplingParams.resolve({}) == SamplingParams()
    assert SamplingParams.resolve({"eos_token_id": 2}).eos_token_ids == (2,)
    assert SamplingParams.resolve({"temperature": 0.6, "top_p": 0.9}) == SamplingParams()


def test_resolve_follows_the_file() -> None:
    params = SamplingParams.resolve(FILE, seed=1)
    assert params == SamplingParams(temperature=0.6, top_p=0.9, top_k=40, eos_token_ids=(5, 6), seed=1)
    assert SamplingParams.resolve({"do_sample": True}, seed=1) == SamplingParams(temperature=1.0, seed=1)
    assert SamplingParams.resolve({"max_new_tokens": 9, "repetition_penalty": 1.1}).max_new_tokens == 9


def test_the_user_outranks_the_file() -> None:
    assert SamplingParams.resolve(FILE, temperature=0) == SamplingParams(eos_token_ids=(5, 6))
    params = SamplingParams.resolve(FILE, top_p=0.5, seed=0, eos_token_ids=())
    assert (params.temperature, params.top_p, params.top_k, params.eos_token_ids) == (0.6, 0.5, 40, ())
    params = SamplingParams.resolve({"top_k": 7}, temperature=1.0, seed=0)
    assert (params.temperature, params.top_k) == (1.0, 7)
    assert SamplingParams.resolve(FILE, temperature=None, seed=2, stop=None).temperature == 0.6
    with pytest.raises(GenerationError, match=r"top_k=3 restricts a draw"):
        SamplingParams.resolve(FILE, temperature=0, top_k=3)


def test_every_draw_without_a_seed_takes_a_new_one() -> None:
    seeds = {SamplingParams.resolve({}, temperature=1.0).seed for _ in range(4)}
    assert len(seeds) == 4
    assert SamplingParams.resolve({}).seed == 0


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(GenerationError, match=r"unknown argument max_tokens: did you mean max_new_tokens\?"):
        SamplingParams.resolve({}, max_tokens=5)
    with pytest.raises(GenerationError, match="do_sample: pass temperature=0"):
        SamplingParams.resolve({}, do_sample=True)
    with pytest.raises(GenerationError, match="unknown argument zzz: known are max_new_tokens"):
        SamplingParams.resolve({}, zzz=1)


def test_a_bad_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"generation_config.json: top_p=3"):
        SamplingParams.resolve({"top_p": 3})
    with pytest.raises(ConfigError, match=r"generation_config.json: eos_token_ids='x'"):
        SamplingParams.resolve({"eos_token_id": "x"})


def test_settings_that_jitmk_does_not_have_are_named() -> None:
    with pytest.warns(UserWarning, match="num_beams=4"):
        SamplingParams.resolve({"num_beams": 4, "typical_p": 1.0, "min_length": 0, "penalty_alpha": None})
