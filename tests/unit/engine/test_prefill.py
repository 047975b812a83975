from __future__ import annotations

import pytest
import torch

from jitmk.engine import prefill
from jitmk.engine.arena import load_weights
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.prefill import Prefill
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec, RopeKind
from jitmk.program.weights import plan_weights
from tests.support.tiny import tiny_spec

CPU = torch.device("cpu")
IDS = [(7 * i + 3) % 101 for i in range(60)]


def make(spec: ModelSpec) -> tuple[Prefill, KvCache]:
    cache = KvCache(spec, 64, CPU)
    return Prefill(spec, load_weights(plan_weights(spec), RandomCheckpoint(spec), CPU), cache), cache


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the order of fp32 sums, and for roundings of keys and values to bf16 that it tipped over."""
    return bool((a - b).norm() < 1e-3 * b.norm())


@pytest.mark.parametrize("tied", [False, True])
def test_a_prompt_in_pieces_is_the_prompt(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    spec = tiny_spec(tied_embeddings=tied)
    whole, whole_cache = make(spec)
    expected = whole.run(IDS, all_logits=True)
    # Pieces within a call, masked attention in several slices, and an LM head eight rows at a time.
    monkeypatch.setattr(prefill, "_PIECE_POSITIONS", 23)
    monkeypatch.setattr(prefill, "_MASKED_QUERIES", 5)
    monkeypatch.setattr(prefill, "_HEAD_BYTES", 1)
    pieces, cache = make(spec)
    assert close(pieces.run(IDS, all_logits=True), expected)
    assert close(cache.tensor.float(), whole_cache.tensor.float())
    assert close(pieces.run(IDS), expected[-1])
    # Calls one after the other, and tokens one by one.
    pieces.run(IDS[:10])
    assert close(pieces.run(IDS[10:40], 10, all_logits=True), expected[10:40])
    assert close(torch.stack([pieces.step(IDS[at], at) for at in range(40, 60)]), expected[40:])


def test_the_length_of_a_prompt_reaches_dynamic_rope_in_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(rope=RopeKind.DYNAMIC)
    expected = make(spec)[0].run(IDS, all_logits=True)
    monkeypatch.setattr(prefill, "_PIECE_POSITIONS", 16)
    assert close(make(spec)[0].run(IDS, all_logits=True), expected)
    assert not close(make(spec)[0].run(IDS[:33], all_logits=True), expected[:33])


def test_it_overwrites_what_an_earlier_sequence_left() -> None:
    run, _ = make(tiny_spec())
    expected = run.run(IDS[:20])
    run.run(IDS[::-1])
    assert torch.equal(run.run(IDS[:20]), expected)


def test_an_observer_sees_every_buffer_of_the_program() -> None:
    from jitmk.program.lowering import lower
    from jitmk.program.program import BufferKind

    spec = tiny_spec()
    run, _ = make(spec)
    seen: dict[str, torch.Size] = {}
    run.run(IDS[:3], observe=lambda name, values: seen.update({name: values.shape}))
    expected = {b.name: (3, b.values) for b in lower(spec).buffers if b.kind is not BufferKind.CANDIDATE}
    assert {name: tuple(shape) for name, shape in seen.items()} == expected


def test_the_estimate_of_its_memory_grows_with_the_context() -> None:
    spec = tiny_spec()
    small, large = (prefill.prefill_workspace_bytes(spec, n) for n in (16, 100_000))
    assert 0 < small < large
