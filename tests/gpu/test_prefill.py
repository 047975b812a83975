"""Prefill on the GPU: its kernels against the same steps in torch, and whole prompts against the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from jitmk import jit
from jitmk.codegen.prefill import render_prefill
from jitmk.cuda.device import Device
from jitmk.engine import attend, prefill
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.prefill import Prefill
from jitmk.engine.prefill_kernels import DeviceKernels
from jitmk.engine.resident import load_resident
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec
from jitmk.program.weights import plan_weights
from jitmk.settings import Settings
from tests.gpu.live_models import SPECS as LIVE_SPECS
from tests.support.closeness import assert_close
from tests.support.prefill_pair import CHECKS, SPECS, Pair
from tests.support.truth import relative_error

pytestmark = pytest.mark.gpu

ALL = {**SPECS, **{name: spec for name, spec in LIVE_SPECS.items() if name in ("gqa-128", "mqa-256")}}
LENGTH = 400


@pytest.fixture(scope="module", params=ALL)
def pair(request: pytest.FixtureRequest, gpu: Device, gpu_settings: Settings) -> Iterator[Pair]:
    spec = ALL[request.param]
    compiled = jit.build(render_prefill(spec), gpu.arch, settings=gpu_settings)
    kernels = DeviceKernels(gpu, spec, compiled.cubin)
    yield Pair.of(spec, torch.device("cuda", gpu.index), kernels, max_seq_len=LENGTH)
    torch.cuda.synchronize()
    kernels.close()


@pytest.mark.parametrize("check", CHECKS)
def test_on_the_gpu(check: str, pair: Pair) -> None:
    CHECKS[check](pair)


def _ids(spec: ModelSpec) -> list[int]:
    ids: list[int] = torch.randint(spec.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(3)).tolist()
    return ids


def _on_the_cpu(spec: ModelSpec, ids: list[int]) -> torch.Tensor:
    """In fp32 but for keys and values."""
    cpu = torch.device("cpu")
    weights = load_resident(plan_weights(spec), RandomCheckpoint(spec), cpu, progress=False)
    return Prefill(spec, weights, KvCache(spec, len(ids), cpu)).run(ids, all_logits=True)


def test_a_long_prompt_is_that_of_the_cpu(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, and in pieces whose keys and values come out of the cache; with masks in slices."""
    ids = _ids(pair.spec)
    expected = _on_the_cpu(pair.spec, ids)
    ours, _ = pair.prefills()
    assert_close("two ways", ours.run(ids, all_logits=True), expected, "one piece")
    assert_close("two ways", ours.run(ids), expected[-1], "the last token alone")
    monkeypatch.setattr(prefill, "_LEAST_PIECE", 150)
    monkeypatch.setattr(prefill, "_ACTIVATION_BYTES", 1)
    monkeypatch.setattr(attend, "_MASKED_QUERIES", 64)
    assert_close("two ways", ours.run(ids, all_logits=True), expected, "three pieces")


def test_the_same_bits_every_time(pair: Pair) -> None:
    ids = _ids(pair.spec)
    ours, _ = pair.prefills()
    first = ours.run(ids)
    cached = pair.caches[0].tensor.clone()
    for _ in range(5):
        assert torch.equal(ours.run(ids), first)
        assert torch.equal(pair.caches[0].tensor, cached)
    assert relative_error(first, _on_the_cpu(pair.spec, ids)[-1].to(first.device)) < 0.05
