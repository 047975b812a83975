"""Runs that only differ in timing give the same bits: what a missing fence breaks now and then."""

from __future__ import annotations

import pytest
import torch

from jitmk.cuda.device import Device
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.program.weights import plan_weights
from jitmk.settings import Settings
from tests.support.shapes import llama

pytestmark = pytest.mark.gpu

CONTEXT = 4096
REPEATS = 300


def test_a_full_ring_changes_nothing(gpu: Device, gpu_settings: Settings) -> None:
    """With as many loads in flight as the device takes, and warps that poll beside those that still read chunks.

    Before slots were handed back behind a proxy fence, most launches of a deeper model came out wrong here.
    """
    spec = llama(2048, 8192, 6, 32, 8, 64, vocab_size=2048)
    backend = MegakernelBackend(
        spec,
        plan_weights(spec),
        RandomCheckpoint(spec, 1, device="cuda"),
        gpu,
        max_seq_len=CONTEXT + 16,
        settings=gpu_settings,
        progress=False,
    )
    ids = torch.randint(spec.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(1)).tolist()
    backend.prefill(ids)
    program = backend._programs.for_splits(16)
    backend._launcher.params.window = 1000
    forced = torch.tensor([5, 9], dtype=torch.int32, device="cuda")
    logits = torch.empty((2, spec.vocab_size), device="cuda")

    def run() -> torch.Tensor:
        logits.fill_(torch.nan)
        backend._launcher.launch(program, 5, CONTEXT, 2, DeviceSampling(), logits=logits, forced=forced)
        backend._launcher.synchronize()
        return logits.clone()

    first = run()
    assert torch.isfinite(first).all()
    different = [i for i in range(REPEATS) if not torch.equal(run(), first)]
    backend.close()
    assert different == []
