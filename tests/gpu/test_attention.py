"""ATTENTION by itself: every head_dim and ratio of heads, positions around edges of tiles, one split and several."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from jitmk.engine.kv_cache import KvCache
from jitmk.model.rope import rope_table
from jitmk.model.spec import ModelSpec
from jitmk.program.kv_layout import TILE_POSITIONS
from jitmk.program.lowering import lower
from jitmk.program.packing import ceil_div
from jitmk.program.program import PARTIAL_EXTRA, AttentionConfig, Phase, Program
from jitmk.program.weights import plan_weights
from jitmk.reference.ops.attention import NewToken, attention, new_key_value
from tests.gpu.conftest import OpRunners
from tests.support.closeness import assert_close
from tests.support.op_kernels import ATTENTION_SPECS
from tests.support.op_runner import Data, OpRunner, Step
from tests.support.phases import in_buffer_order, isolate

pytestmark = pytest.mark.gpu

LAYER = 1
POSITIONS = (0, 1, 15, 16, 17, 127, 128, 1000, 4096)
FEWER_POSITIONS = (0, 17, 128, 4096)
SPLITS = (1, 2, 7)
CAPACITY = 4112


def _name(spec: ModelSpec) -> str:
    return f"head-{spec.head_dim}-{spec.num_heads}-over-{spec.num_kv_heads}"


@dataclass(frozen=True)
class Case:
    """Random keys and values for every position, fp32 [kv_heads, CAPACITY, head_dim], and a new token's qkv."""

    spec: ModelSpec
    keys: torch.Tensor
    values: torch.Tensor
    qkv: torch.Tensor
    rope: torch.Tensor

    @classmethod
    def random(cls, spec: ModelSpec, device: torch.device) -> Case:
        random = torch.Generator(device).manual_seed(spec.head_dim * 100 + spec.num_heads)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random, device=device).bfloat16().float()

        shape = (spec.num_kv_heads, CAPACITY, spec.head_dim)
        qkv = normal(spec.qkv_rows)
        qkv[: spec.attention_size] *= 2  # scores with a deviation of 2: some positions matter more than others
        cos, sin = rope_table(spec.rope, range(CAPACITY), 0, device)
        return cls(spec, normal(*shape), normal(*shape), qkv, torch.stack((cos, sin), dim=-1).contiguous())

    def cache(self, position: int) -> KvCache:
        """A cache with the positions before `position`. What lies behind them must not matter, or must be finite.

        Keys behind the last position may be anything. Values in its tile meet a probability of zero, so they may be
        any number; no other tile is looked at.
        """
        cache = KvCache(self.spec, CAPACITY, self.keys.device)
        cache.tensor.fill_(torch.nan)
        keys, values = self.keys.clone(), self.values.clone()
        keys[:, position:] = torch.nan
        values[:, position:] = 2.0**100
        values[:, ceil_div(position, TILE_POSITIONS) * TILE_POSITIONS :] = torch.nan
        cache.write(LAYER, 0, keys, values)
        return cache

    def new_token(self, position: int) -> NewToken:
        cos, sin = self.rope[position].unbind(-1)

        def read(kv_head: int, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
            return self.keys[kv_head, begin:end], self.values[kv_head, begin:end]

        return NewToken(self.qkv, cos, sin, position, read)


def _check_output(phase: Phase, actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Each head by itself: the tolerance is relative to its size."""
    config = phase.variant.config
    assert isinstance(config, AttentionConfig)
    if not config.partial:
        for head, pair in enumerate(zip(actual.view(config.heads, -1), expected.view(config.heads, -1), strict=True)):
            assert_close("attention", *pair, f"{what}, head {head}")
        return
    shape = (phase.splits * config.heads, config.head_dim + PARTIAL_EXTRA)
    for index, (row, truth) in enumerate(zip(actual.view(shape), expected.view(shape), strict=True)):
        split, head = divmod(index, config.heads)
        where = f"{what}, split {split}, head {head}"
        assert_close("attention", row[: config.head_dim], truth[: config.head_dim], where)
        assert_close("softmax state", row[config.head_dim :], truth[config.head_dim :], where)


def _check_append(case: Case, before: KvCache, after: KvCache, position: int, config: AttentionConfig) -> None:
    """The new token's key and value are where they belong, and no other element of the cache has changed."""
    token = case.new_token(position)
    pairs = [new_key_value(config, kv_head, token) for kv_head in range(config.kv_heads)]
    key, value = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    keys, values = after.read(LAYER, position + 1)
    assert_close("rotated key", keys[:, position], key, f"key of position {position}")
    assert_close("moved", values[:, position], value, f"value of position {position}")
    before.write(LAYER, position, keys[:, position : position + 1], values[:, position : position + 1])
    assert torch.equal(before.tensor.view(torch.int16), after.tensor.view(torch.int16)), "stray writes to the cache"


def _run(runner: OpRunner, case: Case, program: Program, position: int) -> None:
    (phase,) = program.phases
    config = phase.variant.config
    assert isinstance(config, AttentionConfig)
    cache, before = case.cache(position), case.cache(position)
    inputs = {phase.buffers["input"].name: case.qkv}
    data = Data(cache=cache.tensor, rope=case.rope)
    outcome = runner.run(program, plan_weights(case.spec), inputs, data, Step(position=position))
    units = attention(config, range(phase.units), phase.splits, [case.new_token(position)], sums=torch.float64)
    what = f"position {position}, {phase.splits} splits"
    _check_output(phase, outcome.outputs["output"], in_buffer_order(phase, units["output"][0]).cpu(), what)
    _check_append(case, before, cache, position, config)


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("spec", ATTENTION_SPECS, ids=_name)
def test_over_the_cache_and_the_new_token(spec: ModelSpec, splits: int, op_runners: OpRunners) -> None:
    runner = op_runners[f"attention-{spec.head_dim}"]
    case = Case.random(spec, runner.device)
    program = isolate(lower(spec, splits), f"layers.{LAYER}.attention")
    for position in POSITIONS if spec.head_dim in (64, 256) else FEWER_POSITIONS:
        _run(runner, case, program, position)


@pytest.mark.parametrize("spec", ATTENTION_SPECS[:1], ids=_name)
def test_more_splits_than_tiles(spec: ModelSpec, op_runners: OpRunners) -> None:
    """Splits without a position contribute nothing, and say so."""
    runner = op_runners[f"attention-{spec.head_dim}"]
    case = Case.random(spec, runner.device)
    for splits in (33, 132):
        program = isolate(lower(spec, splits), f"layers.{LAYER}.attention")
        for position in (0, 15, 31, 4096):
            _run(runner, case, program, position)


@pytest.mark.parametrize("spec", [ATTENTION_SPECS[2], ATTENTION_SPECS[-1]], ids=_name)
@pytest.mark.parametrize("splits", [2, 5])
def test_split_and_merged_is_whole(spec: ModelSpec, splits: int, op_runners: OpRunners) -> None:
    """ATTENTION and ATTENTION_REDUCE in one launch give what one split gives."""
    runner = op_runners[f"attention-{spec.head_dim}"]
    case = Case.random(spec, runner.device)
    names = [f"layers.{LAYER}.attention"]
    position = 1000
    outputs = []
    for count in (1, splits):
        chain = [*names, f"layers.{LAYER}.attention_reduce"] if count > 1 else names
        program = isolate(lower(spec, count), *chain)
        inputs = {program.phases[0].buffers["input"].name: case.qkv}
        data = Data(cache=case.cache(position).tensor, rope=case.rope)
        outcome = runner.run(program, plan_weights(spec), inputs, data, Step(position=position))
        outputs.append(outcome.outputs["output"].view(spec.num_heads, -1))
    for head, (whole, merged) in enumerate(zip(*outputs, strict=True)):
        assert_close("attention", merged, whole, f"head {head}")
