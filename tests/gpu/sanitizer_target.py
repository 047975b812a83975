"""A short run of everything that the kernel does, to be watched by compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.gpu.sanitizer_target
    compute-sanitizer --tool racecheck python -m tests.gpu.sanitizer_target --race-check --models sandwich,parallel

Models of two layers that between them have every opcode, prologue and epilogue: a prompt, then decode steps with one
split and with three, one and several a launch, greedy, drawn and drawn with filters, up to the last position of the
cache. It checks its own results, so that a sanitizer that changes timing without finding anything has found that
nothing depends on it.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from unittest import mock

import torch

from jitmk.arch import GpuArch
from jitmk.codegen import BuildOptions, render
from jitmk.cuda.device import Device
from jitmk.engine import megakernel
from jitmk.engine.backend import DeviceSampling
from jitmk.engine.megakernel import MegakernelBackend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.model.spec import ModelSpec
from jitmk.program.configs import MERGED_SPLITS
from jitmk.program.program import Variant
from jitmk.program.weights import plan_weights
from jitmk.reference.ops.sample_filter import Filters
from jitmk.settings import get_settings
from tests.support.closeness import assert_close
from tests.support.features import feature_spec
from tests.support.shapes import llama


@dataclass(frozen=True)
class Target:
    """A model, and whether its parts are fused."""

    spec: ModelSpec
    fused: bool = True


TARGETS = {
    "biases": Target(llama(64, 96, 2, 4, 2, 64, vocab_size=101, qkv_bias=True, o_bias=True, mlp_bias=True)),
    # Rows too long for a warp to have units of its own.
    "wide": Target(llama(1280, 1296, 2, 10, 2, 128, vocab_size=101)),
    # RMSNorm behind blocks and in front of them, windows, soft caps.
    "sandwich": Target(feature_spec("sandwich")),
    # LayerNorm behind blocks and in front of them.
    "layer-post-norm": Target(feature_spec("layer-post-norm")),
    # Norms of queries and keys, two rotations and none, windows.
    "two-ropes": Target(feature_spec("two-ropes")),
    # LayerNorm, learned positions, a plain MLP; then every part as a phase of its own.
    "learned-positions": Target(feature_spec("learned-positions")),
    "unfused": Target(feature_spec("learned-positions"), fused=False),
    "unfused-post-norm": Target(feature_spec("layer-post-norm"), fused=False),
    "unfused-parallel": Target(feature_spec("parallel"), fused=False),
}
# The first calls for programs of many splits at its end, so that three have room; the second is soon at its end.
LONG, SHORT = 512, 40
PROMPT = [5, 80, 13, 100, 0, 42, 7, 7, 19, 64, 3, 99, 21, 50, 11, 37, 2]
# Under a sanitizer a step takes thousands of times as long; a real hang would be just as visible.
DEADLINE_MS = 600_000


def open_backend(target: Target, max_seq_len: int, *, race_check: bool) -> MegakernelBackend:
    """A model, in a kernel that racecheck understands if that is asked for."""
    options = BuildOptions(race_check=race_check)

    def render_for_sanitizer(variants: tuple[Variant, ...], spec: ModelSpec, arch: GpuArch) -> str:
        return render(variants, spec, arch, options)

    with mock.patch.object(megakernel, "render", render_for_sanitizer):
        return MegakernelBackend(
            target.spec,
            plan_weights(target.spec),
            RandomCheckpoint(target.spec, 1),
            Device.open(),
            max_seq_len=min(max_seq_len, target.spec.max_positions),
            settings=replace(get_settings(), wait_deadline_ms=DEADLINE_MS),
            fused=target.fused,
            progress=False,
        )


def exercise_phases(backend: MegakernelBackend) -> None:
    """Single steps: prefill against decode, one split against more. Raises AssertionError where two disagree."""
    prefilled = backend.prefill(PROMPT, all_logits=True)
    assert_close("two ways", backend.forced_logits(PROMPT, 0), prefilled, "prompt, decoded")
    position, token = len(PROMPT), int(prefilled[-1].argmax())
    one = backend.phase_outputs(token, position, 1)
    for splits in (3, MERGED_SPLITS + 1):
        several = backend.phase_outputs(token, position, splits)
        assert_close("phase of a model", several["logits"], one["logits"], f"{splits} splits and one")
    assert torch.equal(backend.step_logits(token, position).cpu(), one["logits"])


def exercise_streams(backend: MegakernelBackend) -> None:
    """Many steps a launch, up to the last position of the cache. Raises AssertionError where two runs differ."""
    token = int(backend.prefill(PROMPT).argmax())
    position, steps = len(PROMPT), backend.max_seq_len - len(PROMPT)
    for sampling in (DeviceSampling(), DeviceSampling(0.8, 3), DeviceSampling(0.8, 3, filters=Filters(20, 0.9, 0.01))):
        tokens = list(backend.decode_stream(token, position, steps, sampling))
        assert len(tokens) == steps and list(backend.decode_stream(token, position, steps, sampling)) == tokens
        stopping = replace(sampling, stop_tokens=(tokens[3],))
        assert list(backend.decode_stream(token, position, steps, stopping)) == tokens[: tokens.index(tokens[3]) + 1]


def run(name: str, *, race_check: bool) -> str:
    """Runs a model of `TARGETS` every way that it can run; returns what the kernel was."""
    for max_seq_len, exercise in ((LONG, exercise_phases), (SHORT, exercise_streams)):
        with closing(open_backend(TARGETS[name], max_seq_len, race_check=race_check)) as backend:
            exercise(backend)
    return f"kernel {backend.kernel.key[:16]} of {backend.kernel.compiler}"


def main() -> int:
    parser = argparse.ArgumentParser(description="a short run of the megakernel for compute-sanitizer to watch")
    parser.add_argument("--race-check", action="store_true", help="build the kernel for racecheck")
    parser.add_argument("--models", default=",".join(TARGETS), help="which of %(default)s, with commas between them")
    arguments = parser.parse_args()
    # Racecheck reports hazards inside the fused attention kernels that torch would take for the prompt.
    for enable in (
        torch.backends.cuda.enable_cudnn_sdp,
        torch.backends.cuda.enable_flash_sdp,
        torch.backends.cuda.enable_mem_efficient_sdp,
    ):
        enable(False)
    for name in arguments.models.split(","):
        print(f"{name}: all steps agree, {run(name, race_check=arguments.race_check)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
