"""Tunings on the GPU: what they may change, what they must not, and that a stored one is used."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from jitmk.cuda.device import Device
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.engine.tuning import Tuning, default_tuning, tuning_key
from jitmk.jit import KernelCache, tunings
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.program.weights import plan_weights
from jitmk.settings import Settings
from tests.gpu.live_models import SEED, SPECS, LiveModels
from tests.gpu.test_models import random_ids

pytestmark = pytest.mark.gpu

NAME = "gqa-64"


@pytest.mark.parametrize("change", [{"window": 1}, {"window": 6}, {"policy": "wave"}, {"policy": "pool"}], ids=str)
def test_only_splits_change_bits(change: dict[str, object], models: LiveModels) -> None:
    backend, spec = models[NAME].backend, SPECS[NAME]
    before = backend.tuning
    ids = random_ids(40, spec.vocab_size)
    expected = backend.forced_logits(ids, 0)
    try:
        backend.use(replace(before, **change))  # type: ignore[arg-type]
        assert torch.equal(backend.forced_logits(ids, 0), expected)
    finally:
        backend.use(before)


def test_steps_are_timed(models: LiveModels) -> None:
    backend = models[NAME].backend
    backend.fill_cache()
    times = [backend.step_us(context, steps=8) for context in (0, 100, 500)]
    assert all(math.isfinite(us) and us > 0 for us in times)


def test_a_stored_tuning_is_used_from_then_on(gpu: Device, gpu_settings: Settings, tmp_path: Path) -> None:
    spec, settings = SPECS[NAME], replace(gpu_settings, cache_dir=tmp_path / "cache")

    def opened(settings: Settings) -> tuple[str, Tuning, str]:
        backend = MegakernelBackend(
            spec,
            plan_weights(spec),
            RandomCheckpoint(spec, SEED),
            gpu,
            max_seq_len=64,
            settings=settings,
            progress=False,
        )
        found = backend.kernel.key, backend.tuning, backend.tuning_origin
        backend.close()
        return found

    default = default_tuning(spec, gpu.arch, 64)
    key, tuning, origin = opened(settings)
    assert (tuning, origin) == (default, "cost model")
    other = replace(default, window=1, policy="zigzag", split_steps=((0, 2),))
    record = tunings.TuningRecord(tuning_key(gpu, key), NAME, asdict(other))
    tunings.store(KernelCache.from_settings(settings), record)
    assert opened(settings) == (key, other, "jitmk tune")
    assert opened(replace(settings, tuning=False))[1] == default
