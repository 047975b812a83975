from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.engine import attend, prefill, prefill_ops
from jitmk.engine.arena import load_weights
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.prefill import Prefill
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec, RopeKind
from jitmk.program.weights import plan_weights
from tests.support.features import FEATURES, any_specs, feature_spec
from tests.support.plain_model import PlainModel
from tests.support.tiny import tiny_spec
from tests.support.truth import relative_error

CPU = torch.device("cpu")
IDS = [(7 * i + 3) % 101 for i in range(60)]


def make(spec: ModelSpec) -> tuple[Prefill, KvCache]:
    cache = KvCache(spec, 64, CPU)
    return Prefill(spec, load_weights(plan_weights(spec), RandomCheckpoint(spec), CPU), cache), cache


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the order of fp32 sums, and for roundings of keys and values to bf16 that it tipped over."""
    return bool((a - b).norm() < 1e-3 * b.norm())


BF16_OF_CACHE = 2.0**-7
"""Relative, of the logits of two or three layers whose keys and values are rounded once, to 2^-9."""


@pytest.mark.parametrize("name", FEATURES)
def test_a_prompt_in_pieces_is_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = feature_spec(name)
    truth = PlainModel(RandomCheckpoint(spec)).logits(torch.tensor(IDS))
    whole, whole_cache = make(spec)
    expected = whole.run(IDS, all_logits=True)
    assert relative_error(expected, truth) < BF16_OF_CACHE
    assert close(whole.run(IDS), expected[-1])
    # Pieces within a call, masked attention in several slices, and an LM head eight rows at a time.
    monkeypatch.setattr(prefill, "_LEAST_PIECE", 23)
    monkeypatch.setattr(prefill, "_ACTIVATION_BYTES", 1)
    monkeypatch.setattr(attend, "_MASKED_QUERIES", 5)
    monkeypatch.setattr(attend, "_SCORE_BYTES", 4 * 4 * 12 * 5)
    monkeypatch.setattr(prefill_ops, "_HEAD_BYTES", 1)
    pieces, cache = make(spec)
    assert close(pieces.run(IDS, all_logits=True), expected)
    assert close(cache.tensor.float(), whole_cache.tensor.float())
    assert close(pieces.run(IDS), expected[-1])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(any_specs(), st.integers(1, 50))
def test_any_spec(spec: ModelSpec, cut: int) -> None:
    truth = PlainModel(RandomCheckpoint(spec)).logits(torch.tensor(IDS))
    run, _ = make(spec)
    first = run.run(IDS[:cut], all_logits=True)
    logits = torch.cat((first, run.run(IDS[cut:], cut, all_logits=True)))
    assert relative_error(logits, truth) < 2 * BF16_OF_CACHE
    assert close(run.run(IDS[cut:], cut), logits[-1])


@pytest.mark.parametrize("name", sorted(set(FEATURES) - {"partial-rope"}))
def test_tokens_one_by_one_are_the_prompt(name: str) -> None:
    """Not with a rope whose frequencies depend on the length of the prompt, which is another one here."""
    run, _ = make(feature_spec(name))
    expected = run.run(IDS, all_logits=True)
    run.run(IDS[:10])
    assert close(run.run(IDS[10:40], 10, all_logits=True), expected[10:40])
    assert close(torch.stack([run.step(IDS[at], at) for at in range(40, 60)]), expected[40:])


@pytest.mark.parametrize("rope", [RopeKind.DYNAMIC, RopeKind.LONGROPE])
def test_the_length_of_a_prompt_reaches_its_rope_in_every_piece(
    rope: RopeKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(rope=rope)
    expected = make(spec)[0].run(IDS, all_logits=True)
    monkeypatch.setattr(prefill, "_LEAST_PIECE", 16)
    monkeypatch.setattr(prefill, "_ACTIVATION_BYTES", 1)
    run, _ = make(spec)
    assert close(run.run(IDS, all_logits=True), expected)
    short = run.run(IDS[:20], all_logits=True)
    assert not close(short, expected[:20])  # within the pretrained context
    if rope is RopeKind.DYNAMIC:
        assert not close(run.run(IDS[:50], all_logits=True), expected[:50])
    # Tables that are kept from prompt to prompt are those of short ones.
    assert torch.equal(run.run(IDS[:20], all_logits=True), short)


def test_it_overwrites_what_an_earlier_sequence_left() -> None:
    run, _ = make(tiny_spec())
    expected = run.run(IDS[:20])
    run.run(IDS[::-1])
    assert torch.equal(run.run(IDS[:20]), expected)


@pytest.mark.parametrize("name", FEATURES)
def test_an_observer_sees_every_buffer_of_the_program(name: str) -> None:
    from jitmk.program.lowering import lower
    from jitmk.program.program import BufferKind

    spec = feature_spec(name)
    run, _ = make(spec)
    seen: dict[str, tuple[int, ...]] = {}
    run.run(IDS[:3], observe=lambda name, values: seen.update({name: tuple(values.shape)}))
    expected = {b.name: (3, b.values) for b in lower(spec).buffers if b.kind is not BufferKind.CANDIDATE}
    assert expected.items() <= seen.items()


def test_the_estimate_of_its_memory_grows_with_the_context() -> None:
    spec = tiny_spec()
    small, large = (prefill.prefill_workspace_bytes(spec, n) for n in (16, 100_000))
    assert 0 < small < large
