"""Whole models on the host: several steps a launch, fused and unfused, sampling, stops, barriers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jitmk.arch import GpuArch
from jitmk.codegen import ring_chunks
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.philox import gumbel
from jitmk.program.barriers import with_barriers
from jitmk.program.lowering import lower
from jitmk.reference.machine import ReferenceMachine
from jitmk.reference.weights import ReferenceWeights
from tests.support.closeness import assert_close
from tests.support.features import FEATURES
from tests.support.megakernel_on_host import SMS, compile_for_host
from tests.support.model_on_host import HostModel
from tests.support.op_kernels import with_no_ops
from tests.unit.device.conftest import WIDEST, HostRunners, host_kernel

# From the last positions of a tile to the first of the next, past most windows of FEATURES.
START, IDS = 14, [5, 80, 13, 100]


def _reference_logits(model: HostModel, ids: list[int], start: int, fused: bool) -> torch.Tensor:
    """What the reference machine makes of the same past, fp32 [len(ids), vocab_size]."""
    machine = ReferenceMachine(model.spec, ReferenceWeights(model.spec, model.source), fused=fused)
    for layer in range(model.spec.num_layers):
        machine.cache.write(layer, 0, *model.cache.read(layer, start))
    rows = [machine.step(token, start + i, want_logits=True).logits for i, token in enumerate(ids)]
    return torch.stack([row for row in rows if row is not None])


UNFUSED = ("two-ropes", "learned-positions", "parallel")


@pytest.mark.parametrize(
    ("name", "fused"), [*((name, True) for name in FEATURES), *((name, False) for name in UNFUSED)]
)
def test_steps_of_a_launch(name: str, fused: bool, host_runners: HostRunners) -> None:
    """Each step attends to what the steps before appended, in this launch and in the one before."""
    model = host_runners.model(f"features-{name}")
    expected = _reference_logits(model, IDS, START, fused)
    whole, split = (model.prepare(lower(model.spec, splits, fused=fused)) for splits in (1, 3))
    actual = model.forced_logits(whole, IDS[:3], START), model.forced_logits(split, IDS[3:], START + 3)
    for i, (row, truth) in enumerate(zip(torch.cat(actual), expected, strict=True)):
        assert_close("phase of a model", row, truth, f"logits of step {i}")


@pytest.mark.parametrize("name", ["plain", "sandwich", "learned-positions"])
def test_steps_with_a_ring_of_three_chunks(name: str, tmp_path: Path) -> None:
    kernel = host_kernel(f"features-{name}")
    variants = (*kernel.variants, WIDEST)
    arch = GpuArch.parse("sm_120a")
    assert ring_chunks(variants, arch) == 3
    library = compile_for_host(variants, kernel.spec, tmp_path / "kernel", arch=arch.name)
    model = HostModel(kernel.spec, library, variants)
    for splits in (1, 3, 5):
        actual = model.forced_logits(model.prepare(lower(model.spec, splits)), IDS, START)
        for row, truth in zip(actual, _reference_logits(model, IDS, START, True), strict=True):
            assert_close("phase of a model", row, truth, f"logits with {splits} splits")


def test_turns_do_not_matter(host_runners: HostRunners) -> None:
    """Whoever takes turns with whom: every bit is the same."""
    runs = []
    for seed in (100, 200):
        model = host_runners.model("features-sandwich", seed)
        runs.append(model.forced_logits(model.prepare(lower(model.spec, 3)), IDS, START))
    assert torch.equal(*runs)


def test_tokens_are_drawn_on_the_device(host_runners: HostRunners) -> None:
    """A stream reads what it sampled, and ends at a stop token, with the loaders ahead of it."""
    model = host_runners.model("features-learned-positions")
    program = model.prepare(lower(model.spec))
    for sampling in (DeviceSampling(), DeviceSampling(0.8, 3)):
        tokens = model.stream(program, IDS[0], START, 4, sampling)
        logits = model.forced_logits(program, [IDS[0], *tokens[:-1]], START)
        for i, token in enumerate(tokens):
            keys = logits[i] / (sampling.temperature or 1.0)
            if sampling.temperature:
                keys = keys + gumbel(sampling.seed, START + i + 1, model.spec.vocab_size)
            assert token == int(keys.argmax())
        stop = tokens[2]
        ended = model.stream(program, IDS[0], START, 4, replace(sampling, stop_tokens=(stop,)))
        assert ended == tokens[: tokens.index(stop) + 1]


def test_barriers_and_instructions_without_effect_change_nothing(host_runners: HostRunners) -> None:
    model = host_runners.model("barriers")
    plain = lower(model.spec, 3)
    usual = model.forced_logits(model.prepare(plain), IDS, START)
    for program in (with_barriers(plain, SMS), with_no_ops(plain, host_kernel("barriers"))):
        assert torch.equal(model.forced_logits(model.prepare(program), IDS, START), usual)
