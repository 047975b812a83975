"""Whole models: each phase against the reference machine, logits against the truth, and the same bits every time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jitmk import jit
from jitmk.codegen import render
from jitmk.cuda.device import Device
from jitmk.engine.arena import load_weights
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.kv_cache import KvCache
from jitmk.engine.launcher import MegakernelLauncher
from jitmk.engine.step_programs import prepare
from jitmk.errors import CompilerNotFoundError
from jitmk.jit.nvcc import NvccCompiler
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.program.barriers import with_barriers
from jitmk.program.lowering import lower
from jitmk.program.program import BufferKind
from jitmk.program.rope_layout import rope_rows
from jitmk.program.weights import plan_weights
from jitmk.reference.machine import ReferenceMachine
from jitmk.reference.weights import ReferenceWeights
from jitmk.schedule.policies import POLICIES
from jitmk.settings import Settings
from tests.gpu.live_models import LLAMAS, SPECS, Live, LiveModels, open_backend, source
from tests.support.closeness import assert_close
from tests.support.op_kernels import barrier_kernel, with_no_ops
from tests.support.op_runner import KV_FLAGS, Data
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
    machine = ReferenceMachine(live.spec, weights, splits=splits, fused=live.fused)
    if positions:
        for layer in range(live.spec.num_layers):
            machine.cache.write(layer, 0, *live.backend.cached(layer, positions))
    return machine


@pytest.mark.parametrize("name", SPECS)
def test_every_phase_of_a_step(name: str, models: LiveModels) -> None:
    """In the order of the program, so that the first phase that differs is the one that is named."""
    live, weights = models[name], ReferenceWeights(SPECS[name], source(name))
    kind = "phase of a model" if name in LLAMAS else "phase of a tiny model"
    ids = random_ids(64, live.spec.vocab_size)
    live.backend.forced_logits(ids, 0)
    for position, splits in PLACES:
        machine = _machine(weights, live, position, splits)
        machine.step(ids[position], position, want_logits=True)
        expected = machine.outputs()
        actual = live.backend.phase_outputs(ids[position], position, splits)
        program = lower(live.spec, splits, fused=live.fused)
        names = [b.name for b in program.buffers if b.kind is not BufferKind.CANDIDATE]
        for buffer in (*names, "logits"):
            where = f"{buffer} at position {position}, {splits} splits"
            assert_close(kind, actual[buffer], expected[buffer], where)
        for layer in range(live.spec.num_layers):
            keys, values = live.backend.cached(layer, position + 1)
            reference_keys, reference_values = machine.cache.read(layer, position + 1)
            assert_close(kind, keys[:, position], reference_keys[:, position], f"key of layer {layer}")
            assert_close(kind, values[:, position], reference_values[:, position], f"value of {layer}")


@pytest.mark.parametrize("name", LLAMAS)
def test_logits_are_as_close_to_the_truth_as_transformers_in_bf16(name: str, models: LiveModels) -> None:
    """The project's tolerance: fp32 through transformers is the truth, its bf16 the distance that is allowed.

    The other families are held to the same in tests/models.
    """
    live = models[name]
    ids = random_ids(48, live.spec.vocab_size)
    truth = transformers_logits(live.spec, source(name), ids, torch.float32)
    theirs = transformers_logits(live.spec, source(name), ids, torch.bfloat16)
    ours = live.backend.forced_logits(ids, 0)
    assert relative_error(ours, truth) <= relative_error(theirs, truth)
    assert mean_kl(ours, truth) <= mean_kl(theirs, truth)


# LongRoPE's frequencies depend on how long the prompt is, and here there are prompts and none.
@pytest.mark.parametrize("name", [name for name in SPECS if name != "partial-rope"])
def test_decoding_agrees_with_prefill(name: str, models: LiveModels) -> None:
    """Prefill and decode are two ways to the same logits, and to the same cache."""
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
        for splits in (1, 3, 5):
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


def test_barriers_and_instructions_without_effect_change_nothing(gpu: Device, gpu_settings: Settings) -> None:
    kernel = barrier_kernel(gpu.arch.sm_count)
    spec, plan = kernel.spec, plan_weights(kernel.spec)
    compiled = jit.build(render(kernel.variants, spec, gpu.arch), gpu.arch, settings=gpu_settings)
    plain = lower(spec, 3)
    programs = (plain, with_barriers(plain, gpu.arch.sm_count), with_no_ops(plain, kernel))
    device = torch.device("cuda", gpu.index)
    arena = load_weights(plan, RandomCheckpoint(spec, 1), device, progress=False)
    cache, rope = KvCache(spec, 64, device), torch.stack(rope_rows(spec, range(64)), dim=-1).contiguous().to(device)
    data = Data(arena.weights, arena.constants, cache.tensor, rope)
    launcher = MegakernelLauncher(
        gpu,
        compiled.cubin,
        arena_words=max(program.arena_words for program in programs),
        kv_flags=KV_FLAGS,
        deadline_ms=gpu_settings.wait_deadline_ms,
        window=3,
        window_ahead=2,
        first_look=0,
        operands=data.parameters(),
    )
    ids = random_ids(24, spec.vocab_size)
    forced = torch.tensor(ids, dtype=torch.int32, device=device)
    rows = []
    for program in programs:
        logits = torch.full((len(ids), spec.vocab_size), torch.nan, device=device)
        prepared = prepare(program, plan, kernel.variants, gpu.arch, device)
        launcher.launch(prepared, ids[0], 0, len(ids), DeviceSampling(), logits=logits, forced=forced)
        launcher.synchronize()
        rows.append(logits.cpu())
    launcher.close()
    assert bool(torch.isfinite(rows[0]).all())
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2])
