"""ATTENTION, ATTENTION_REDUCE and the projection that merges, on the host: head_dims, edges of tiles, splits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.configs import MERGED_SPLITS
from jitmk.program.program import Variant
from tests.support.megakernel_on_host import SMS, HostLauncher, compile_for_host
from tests.support.op_kernels import ATTENTION_FEATURES, ATTENTION_SPECS, MANY_HEADS_SPEC, MERGING_SPECS
from tests.support.op_runner import ARENA_WORDS, KV_FLAGS, OpRunner
from tests.support.single_phases import ModelPhases
from tests.support.single_reduce import check_attention_reduce
from tests.unit.device.conftest import WIDEST, HostRunners, host_kernel

CAPACITY = 160
CPU = torch.device("cpu")


def _name(spec: ModelSpec) -> str:
    return f"head-{spec.head_dim}-{spec.num_heads}-over-{spec.num_kv_heads}"


@pytest.mark.parametrize("spec", [s for s in ATTENTION_SPECS if s.head_dim in (64, 80, 256)], ids=_name)
def test_over_the_cache_and_the_new_token(spec: ModelSpec, host_runners: HostRunners) -> None:
    runner, model = host_runners[f"attention-{spec.head_dim}"], ModelPhases(spec, CAPACITY, CPU)
    for position, splits in ((0, 1), (0, 4), (1, 2), (15, 2), (16, 1), (17, 7), (128, 1), (159, 2)):
        model.check(runner, ("layers.1.attention",), position, splits=splits)


@pytest.mark.parametrize(
    ("arch", "head_dim", "beside"),
    [
        ("sm_90a", 64, ()),
        ("sm_120a", 64, (WIDEST,)),
        ("sm_90a", 128, ()),
        ("sm_120a", 128, ()),
        ("sm_120a", 256, ()),
        ("sm_120a", 128, (WIDEST,)),
    ],
)
def test_more_tiles_than_the_ring_holds(arch: str, head_dim: int, beside: tuple[Variant, ...], tmp_path: Path) -> None:
    """On sm_120a the ring is shorter than the way from one of a warp's tiles to its next (TileChunks)."""
    kernel = host_kernel(f"attention-{head_dim}")
    kernel = replace(kernel, variants=(*kernel.variants, *beside))
    library = compile_for_host(kernel.variants, kernel.spec, tmp_path / "kernel", arch=arch)
    launcher = HostLauncher(library, arena_words=ARENA_WORDS, kv_flags=KV_FLAGS)
    model = ModelPhases(next(s for s in ATTENTION_SPECS if s.head_dim == head_dim), 640, CPU)
    for position, splits in ((599, 1), (599, 3), (150, 1)):
        model.check(OpRunner(launcher, CPU, SMS, kernel), ("layers.1.attention",), position, splits=splits)


FAR = {
    "above": lambda position: 8.0 if position >= 0 else 0.0,
    "below": lambda position: -8.0 if position >= 0 else 0.0,
    "apart": lambda position: 8.0 if position % 3 == 0 else -8.0,
    "later": lambda position: 8.0 if position >= 130 else 0.0,
    "at the end": lambda position: 8.0 if position >= 400 else 0.0,
    "below at first": lambda position: -8.0 if 0 <= position < 300 else 0.0,
    "the new one": lambda position: 8.0 if position < 0 else 0.0,
}
"""What scores are like, for which sums of their exponentials themselves will not do."""


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("spec", [ATTENTION_SPECS[1], ATTENTION_SPECS[-4], ATTENTION_SPECS[-1]], ids=_name)
def test_scores_may_be_far_from_0(spec: ModelSpec, far: str, host_runners: HostRunners) -> None:
    runner = host_runners[f"attention-{spec.head_dim}"]
    model = ModelPhases(spec, 640, CPU, far=FAR[far])
    for position, splits in ((0, 1), (5, 2), (100, 1), (135, 1), (310, 3), (450, 1)):
        model.check(runner, ("layers.1.attention",), position, splits=splits)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("head_dim", [80, 256])
def test_windows_caps_norms_and_partial_rotation(
    head_dim: int, which: int, layer: int, host_runners: HostRunners
) -> None:
    spec, runner = ATTENTION_FEATURES[head_dim][which], host_runners[f"attention-features-{head_dim}"]
    model = ModelPhases(spec, CAPACITY, CPU)
    for position, splits in ((0, 1), (16, 1), (39, 3), (40, 1), (63, 2), (159, 3)):
        model.check(runner, (f"layers.{layer}.attention",), position, splits=splits)


@pytest.mark.parametrize("spec", [ATTENTION_SPECS[1], ATTENTION_SPECS[-1]], ids=_name)
def test_splits_are_weighed_by_their_maxima(spec: ModelSpec, host_runners: HostRunners) -> None:
    runner = host_runners[f"attention-{spec.head_dim}"]
    for splits, empty in ((2, []), (3, [0]), (17, list(range(1, 17)))):
        check_attention_reduce(runner, spec, splits, empty)


def test_more_splits_than_a_gpu_has_sms_for(host_runners: HostRunners) -> None:
    for splits in (16, 17, 33):
        check_attention_reduce(host_runners["attention-many-heads"], MANY_HEADS_SPEC, splits, [0])


@pytest.mark.parametrize("spec", MERGING_SPECS, ids=_name)
def test_the_projection_merges_a_few_splits(spec: ModelSpec, host_runners: HostRunners) -> None:
    runner, model = host_runners[f"attention-{spec.head_dim}"], ModelPhases(spec, CAPACITY, CPU)
    for splits in range(2, MERGED_SPLITS + 1):
        model.check(runner, ("layers.1.o_proj",), 0, splits=splits)
