"""Whole models: each phase against the reference machine, logits against the truth, and the same bits every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jitmk.cuda.device import Device
from jitmk.errors import CompilerNotFoundError
from jitmk.jit.nvcc import NvccCompiler
from jitmk.program.lowering import lower
from jitmk.program.program import BufferKind
from jitmk.reference.machine import ReferenceMachine
from jitmk.reference.weights import ReferenceWeights
from jitmk.schedule.policies import POLICIES
from jitmk.settings import Settings
from tests.gpu.live_models import SPECS, Live, LiveModels, open_backend, source
from tests.support.closeness import assert_close
from tests.support.truth import mean_kl, relative_error, transformers_logits

pytestmark = pytest.mark.gpu

# One position, a whole tile, one past it, and a last tile that is neither full nor empty; then the splits.
PLACES = ((0, 1), (1, 1), (16, 1), (17, 1), (40, 1), (40, 2), (40, 5))


def random_ids(count: int, vocab_size: int, seed: int = 5) -> list[int]:
    """Token ids without meaning."""
    ids: list[int] = torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def _machine(weights: ReferenceWeights, live: Live, positions: int, splits: int) -> ReferenceMachine:
    """A reference machine whose cache holds what the GPU's does."""
    machine = ReferenceMachine(live.spec, weights, splits=splits)
    if positions:
        for layer in range(live.spec.num_layers):
            machine.cache.write(layer, 0, *live.backend.cached(layer, positions))
    return machine


@pytest.mark.parametrize("name", SPECS)
def test_every_phase_of_a_step(name: str, models: LiveModels) -> None:
    """In the order of the program, so that the first phase that differs is the one that is named."""
    live, weights = models[name], ReferenceWeights(SPECS[name], source(name))
    ids = random_ids(64, live.spec.vocab_size)
    live.backend.forced_logits(ids, 0)
    for position, splits in PLACES:
        machine = _machine(weights, live, position, splits)
        machine.step(ids[position], position, want_logits=True)
        expected = machine.outputs()
        actual = live.backend.phase_outputs(ids[position], position, splits)
        names = [b.name for b in lower(live.spec, splits).buffers if b.kind is not BufferKind.CANDIDATE]
        for buffer in (*names, "logits"):
            where = f"{buffer} at position {position}, {splits} splits"
            assert_close("phase of a model", actual[buffer], expected[buffer], where)
        for layer in range(live.spec.num_layers):
            keys, values = live.backend.cached(layer, position + 1)
            reference_keys, reference_values = machine.cache.read(layer, position + 1)
            assert_close("phase of a model", keys[:, position], reference_keys[:, position], f"key of layer {layer}")
            assert_close("phase of a model", values[:, position], reference_values[:, position], f"value of {layer}")


@pytest.mark.parametrize("name", SPECS)
def test_logits_are_as_close_to_the_truth_as_transformers_in_bf16(name: str, models: LiveModels) -> None:
    """The project's tolerance: fp32 through transformers is the truth, its bf16 the distance that is allowed."""
    live = models[name]
    ids = random_ids(48, live.spec.vocab_size)
    truth = transformers_logits(live.spec, source(name), ids, torch.float32)
    theirs = transformers_logits(live.spec, source(name), ids, torch.bfloat16)
    ours = live.backend.forced_logits(ids, 0)
    assert relative_error(ours, truth) <= relative_error(theirs, truth)
    assert mean_kl(ours, truth) <= mean_kl(theirs, truth)


@pytest.mark.parametrize("name", SPECS)
def test_decoding_agrees_with_prefill(name: str, models: LiveModels) -> None:
    """Prefill through torch and decode through the kernel are two ways to the same logits, and to the same cache."""
    live = models[name]
    ids = random_ids(100, live.spec.vocab_size)
    decoded = live.backend.forced_logits(ids, 0)
    prefilled = live.backend.prefill(ids, all_logits=True)
    assert_close("two ways", decoded, prefilled, "from the first token on")
    continued = live.backend.forced_logits(ids[60:], 60)  # on top of what prefill left in the cache
    assert_close("two ways", continued, prefilled[60:], "continuing a prefill")
    rest = live.backend.prefill(ids[80:], 80, all_logits=True)
    assert_close("two ways", rest, prefilled[80:], "continuing what was decoded")


def test_twenty_runs_are_equal_to_the_bit(models: LiveModels) -> None:
    live = models["gqa-64"]
    ids = random_ids(50, live.spec.vocab_size)
    first = live.backend.forced_logits(ids, 0)
    assert bool(torch.isfinite(first).all())
    for _ in range(19):
        assert torch.equal(live.backend.forced_logits(ids, 0), first)


def test_splits_do_not_depend_on_timing_either(models: LiveModels) -> None:
    live = models["gqa-64"]
    ids = random_ids(64, live.spec.vocab_size)
    live.backend.forced_logits(ids, 0)
    first = live.backend.phase_outputs(ids[40], 40, 5)
    for _ in range(10):
        again = live.backend.phase_outputs(ids[40], 40, 5)
        assert all(torch.equal(values, again[name]) for name, values in first.items())


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"round_robin"}))
def test_every_policy_gives_the_same_bits(policy: str, models: LiveModels, gpu: Device, gpu_settings: Settings) -> None:
    """Who computes a value does not change it; so neither logits nor tokens depend on the schedule."""
    live = models["gqa-64"]
    ids = random_ids(40, live.spec.vocab_size)
    usual = live.backend.forced_logits(ids, 0)
    backend = open_backend("gqa-64", gpu, gpu_settings, policy=policy)
    try:
        assert torch.equal(backend.forced_logits(ids, 0), usual)
        for splits in (1, 3):
            expected = live.backend.phase_outputs(ids[33], 33, splits)
            actual = backend.phase_outputs(ids[33], 33, splits)
            assert all(torch.equal(values, actual[name]) for name, values in expected.items())
    finally:
        backend.close()


def test_both_compilers_make_the_same_kernel(models: LiveModels, gpu: Device, gpu_settings: Settings) -> None:
    """They round alike up to how products and sums are fused."""
    try:
        NvccCompiler.find(gpu_settings)
    except CompilerNotFoundError as error:
        pytest.skip(f"no NVCC, so NVRTC is what all tests use: {error}")
    live = models["gqa-64"]
    ids = random_ids(30, live.spec.vocab_size)
    usual = live.backend.forced_logits(ids, 0)
    for use_nvrtc in (True, False):
        backend = open_backend("gqa-64", gpu, replace(gpu_settings, use_nvrtc=use_nvrtc))
        try:
            assert backend.kernel.compiler == ("nvrtc" if use_nvrtc else "nvcc")
            assert_close("phase of a model", backend.forced_logits(ids, 0), usual, backend.kernel.compiler)
        finally:
            backend.close()
