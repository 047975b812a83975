"""ATTENTION by itself: every head_dim, ratio of heads and feature, positions around edges of tiles, several splits; and
the projection that merges a few of these."""

from __future__ import annotations

import pytest
import torch

from jitmk.model.spec import ModelSpec
from jitmk.program.configs import MERGED_SPLITS
from jitmk.program.lowering import lower
from jitmk.program.weights import plan_weights
from tests.gpu.conftest import OpRunners
from tests.support.closeness import assert_close
from tests.support.op_kernels import ATTENTION_FEATURES, ATTENTION_SPECS, MERGING_SPECS
from tests.support.op_runner import Data, Step
from tests.support.phases import isolate
from tests.support.single_phases import ModelPhases

pytestmark = pytest.mark.gpu

LAYER = 1
POSITIONS = (0, 1, 15, 16, 17, 127, 128, 1000, 4096)
FEWER_POSITIONS = (0, 17, 128, 4096)
SPLITS = (1, 2, 7)
CAPACITY = 4112


def _name(spec: ModelSpec) -> str:
    return f"head-{spec.head_dim}-{spec.num_heads}-over-{spec.num_kv_heads}"


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=_name)
def test_over_the_cache_and_the_new_token(spec: ModelSpec, splits: int, op_runners: OpRunners) -> None:
    runner = op_runners[f"attention-{spec.head_dim}"]
    model = ModelPhases(spec, CAPACITY, runner.device)
    for position in POSITIONS if spec.head_dim in (64, 256) else FEWER_POSITIONS:
        model.check(runner, (f"layers.{LAYER}.attention",), position, splits=splits)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("head_dim", ATTENTION_FEATURES)
def test_windows_caps_norms_and_partial_rotation(
    head_dim: int, which: int, layer: int, splits: int, op_runners: OpRunners
) -> None:
    spec, runner = ATTENTION_FEATURES[head_dim][which], op_runners[f"attention-features-{head_dim}"]
    model = ModelPhases(spec, CAPACITY, runner.device)
    for position in (0, 1, 16, 39, 40, 41, 63, 500, 4096):
        model.check(runner, (f"layers.{layer}.attention",), position, splits=splits)


@pytest.mark.parametrize("spec", ATTENTION_SPECS[:1], ids=_name)
def test_more_splits_than_tiles(spec: ModelSpec, op_runners: OpRunners) -> None:
    """Splits without a position contribute nothing, and say so."""
    runner = op_runners[f"attention-{spec.head_dim}"]
    model = ModelPhases(spec, CAPACITY, runner.device)
    for splits in (33, 132):
        for position in (0, 15, 31, 4096):
            model.check(runner, (f"layers.{LAYER}.attention",), position, splits=splits)


@pytest.mark.parametrize(
    ("which", "splits"), [(2, MERGED_SPLITS + 1), (2, 9), (-1, 2), (-1, 5)], ids=lambda number: str(number)
)
def test_split_and_merged_is_whole(which: int, splits: int, op_runners: OpRunners) -> None:
    """ATTENTION and ATTENTION_REDUCE in one launch give what one split gives; the last model has no other merge."""
    spec = ATTENTION_SPECS[which]
    assert splits > MERGED_SPLITS or spec not in MERGING_SPECS
    runner = op_runners[f"attention-{spec.head_dim}"]
    model = ModelPhases(spec, CAPACITY, runner.device)
    names = [f"layers.{LAYER}.attention"]
    position = 1000
    qkv = torch.randn(spec.qkv_rows, generator=torch.Generator().manual_seed(7)).bfloat16().float()
    outputs = []
    for count in (1, splits):
        chain = [*names, f"layers.{LAYER}.attention_reduce"] if count > 1 else names
        program = isolate(lower(spec, count), *chain)
        inputs = {program.phases[0].buffers["input"].name: qkv}
        data = Data(cache=model.cache(position).tensor, rope=model.rope)
        outcome = runner.run(program, plan_weights(spec), inputs, data, Step(position=position))
        outputs.append(outcome.outputs["output"].view(spec.num_heads, -1))
    for head, (whole, merged) in enumerate(zip(*outputs, strict=True)):
        assert_close("attention", merged, whole, f"head {head}")


@pytest.mark.parametrize("splits", range(2, MERGED_SPLITS + 1))
@pytest.mark.parametrize("spec", MERGING_SPECS, ids=_name)
def test_the_projection_merges_a_few_splits(spec: ModelSpec, splits: int, op_runners: OpRunners) -> None:
    runner = op_runners[f"attention-{spec.head_dim}"]
    ModelPhases(spec, CAPACITY, runner.device).check(runner, (f"layers.{LAYER}.o_proj",), 0, splits=splits)
