"""What a unit costs, and how long phases take: the model behind cost-aware policies and the number of splits.

A decode step of batch 1 is a stream: a unit takes the time in which its SM's share of the memory bandwidth brings its
bytes. What a phase costs beyond that is the time from its last input to its first output. The figures were measured
on an H200; other GPUs of the class differ by factors that change no decision here by much.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from jitmk.model.spec import ModelSpec
from jitmk.program.chunks import chunk_limit
from jitmk.program.configs import (
    ELEMENTWISE_VALUES,
    MAX_GROUP,
    REDUCED_SPLITS,
    AttentionConfig,
    AttentionReduceConfig,
    EmbedConfig,
    MatvecConfig,
    SampleConfig,
)
from jitmk.program.fusion import Fusion
from jitmk.program.kv_layout import TILE_POSITIONS, KvLayout
from jitmk.program.packing import CHUNK_LIMIT, CONSUMER_WARPS, UNIT_ROWS, ceil_div
from jitmk.program.program import MAX_CANDIDATES, NARROW, Phase

WORD_BYTES = 8


@dataclass(frozen=True)
class UnitCost:
    """What one unit streams from memory and computes.

    Attributes:
        bytes: weights, old keys and values, and words that the unit reads for itself alone.
        flops: floating-point operations, a multiply-add counted as two.
    """

    bytes: int
    flops: int


@dataclass(frozen=True)
class TimeModel:
    """How fast one SM is when all of them work.

    Attributes:
        bytes_per_us: an SM's share of the memory bandwidth.
        flops_per_us: what an SM's tensor cores reach on matrix-vector products, where one row of the activation
            fragment in sixteen carries a token.
        phase_latency_us: from the last input of a phase to its first output on another SM.
        ring_us: how far the stream of weights can run ahead of a phase that waits.
    """

    bytes_per_us: float = 34_000.0
    flops_per_us: float = 450_000.0
    phase_latency_us: float = 2.0
    ring_us: float = 4.0

    def unit_us(self, cost: UnitCost) -> float:
        """Microseconds that a unit adds to a phase on one SM."""
        return max(cost.bytes / self.bytes_per_us, cost.flops / self.flops_per_us)

    def is_memory_bound(self, cost: UnitCost, units: int) -> bool:
        """Whether a phase of `units` units on one SM spends more time on its bytes than on latency and arithmetic."""
        compute = self.phase_latency_us + units * cost.flops / self.flops_per_us
        return units * cost.bytes / self.bytes_per_us > compute


def unit_cost(phase: Phase, context: int) -> UnitCost:
    """The cost of one unit of a phase.

    Args:
        context: positions in the KV cache.
    """
    config = phase.variant.config
    if isinstance(config, MatvecConfig):
        return UnitCost(config.layout.unit_bytes, 2 * UNIT_ROWS * config.columns)
    if isinstance(config, AttentionConfig):
        layout = KvLayout(config.head_dim)
        attended = min(context, phase.numbers["window"] or context)
        tiles = ceil_div(layout.tiles(attended), phase.splits)
        positions = min(attended, tiles * TILE_POSITIONS)
        return UnitCost(tiles * layout.tile_bytes, 4 * config.group * config.head_dim * positions)
    if isinstance(config, AttentionReduceConfig):
        words = phase.splits * (config.head_dim // 2 + 1)
        return UnitCost(words * WORD_BYTES, 4 * words)
    if isinstance(config, EmbedConfig):
        return UnitCost(2 * UNIT_ROWS, UNIT_ROWS)
    if isinstance(config, SampleConfig):
        return UnitCost(2 * MAX_CANDIDATES * WORD_BYTES, MAX_CANDIDATES)
    return UnitCost(2 * ELEMENTWISE_VALUES * WORD_BYTES, ELEMENTWISE_VALUES)


@dataclass(frozen=True)
class SplitCosts:
    """What splits add to a layer, in microseconds.

    Attributes:
        merge_us: for each split beside the first, at least, if the projection behind merges them.
        merge_value_us: each of their values, where that is more.
        reduce_us: a reduce phase for each `REDUCED_SPLITS` splits: a dependency more.
        reduce_value_us: each value of each partial result that a reduce phase merges: it is published and fetched.
    """

    merge_us: float
    merge_value_us: float
    reduce_us: float
    reduce_value_us: float


NARROW_COSTS = SplitCosts(0.13, 0.23 / 1024, 1.36, 0.01 / 1024)
WIDE_COSTS = SplitCosts(0.0, 0.0, 0.92, 0.058 / 1024)
"""Of models up to `NARROW`, and of wider ones, whose projections merge nothing. These and the following are fitted to
steps on an H200: of four narrow models at 32 to 8192 positions with 1 to 26 splits, and of five models at 128 to 8192
with 1 to 16 (docs/performance.md)."""
TILE_BYTES_PER_US = 64_000.0
"""How fast one of several SMs gets through its part of a head's old keys and values."""
LONE_TILE_BYTES_PER_US = 76_000.0
"""How fast one SM gets through all of them: it keeps more loads in flight then (vm/attention_tiles.cuh)."""
APART_TILE_BYTES_PER_US = 110_000.0
"""How fast an SM does that does nothing else (`attend_apart`): much has come before the queries do."""
EARLY_ROUND_US, LATER_ROUND_US = 0.1, 0.25
"""The same where warps read several tiles early (`Fusion.early_tiles`), for each round of a tile a warp: of those, and
of later ones."""

ATTENDING = Fraction(1, 5)
"""The part of the SMs that may do nothing but attend. Of 132, 5 to 24 of them paid on an H200, 32 and 40 did not
(docs/performance.md)."""


def attend_apart(units: int, sms: int) -> bool:
    """Whether the SMs that attend do nothing else, in a narrow model with so many units of attention."""
    return units <= ATTENDING * sms


def split_ladder(spec: ModelSpec, sms: int) -> tuple[int, ...]:
    """The numbers of splits that are worth having: 1, 2, 4, 6, 8, 12, 16 and so on, up to the largest number that still
    gives every unit an SM of its own, and that number itself.

    Not 3, which was nowhere measured as better than 2 and 4 by a percent. Where the time model thinks that it is, it
    would keep larger numbers away (`choose_split_steps`).
    """
    fill = most_splits(head_groups(spec), sms)
    powers = [1 << i for i in range(fill.bit_length())]
    between = [3 * power for power in powers[1:] if 3 * power <= fill]
    return tuple(sorted({*powers, *between, fill}))


def most_splits(groups: int, sms: int) -> int:
    """The largest number of splits that gives every unit an SM of its own, where one split has so many units."""
    return max(1, sms // groups)


def head_groups(spec: ModelSpec) -> int:
    """Attention units of a layer at one split."""
    return spec.num_kv_heads * ceil_div(spec.query_group, MAX_GROUP)


def choose_splits(spec: ModelSpec, sms: int, context: int) -> int:
    """Into how many parts attention should split the context.

    Weighs the time in which one SM works through its part of the keys and values, in the mean of the layers, against
    the price of a merge.

    Args:
        spec: the model.
        sms: SMs of the GPU.
        context: positions in the KV cache.

    Returns:
        A member of `split_ladder(spec, sms)`; the smallest of those that are equally fast.
    """
    layout, narrow = KvLayout(spec.head_dim), spec.hidden_size <= NARROW
    costs, fusion = NARROW_COSTS if narrow else WIDE_COSTS, Fusion.of(spec, True)
    early = fusion.early_tiles(spec)
    windows = Counter(layer.window for layer in spec.layers)
    tiles = [(layout.tiles(min(context, window or context)), layers) for window, layers in windows.items()]

    def merge_us(splits: int) -> float:
        if splits <= fusion.merged_splits:  # one at least, which costs nothing
            return (splits - 1) * max(costs.merge_us, spec.attention_size * costs.merge_value_us)
        batches = ceil_div(splits, REDUCED_SPLITS)
        return batches * costs.reduce_us + splits * spec.attention_size * costs.reduce_value_us

    def layer_us(splits: int) -> float:
        units = head_groups(spec) * splits
        in_turn = sum(layers * ceil_div(of_layer, splits) for of_layer, layers in tiles) / spec.num_layers
        rate = TILE_BYTES_PER_US if splits > 1 else LONE_TILE_BYTES_PER_US
        if narrow and attend_apart(units, sms):
            rate = APART_TILE_BYTES_PER_US
            if early > 1:
                rounds = ceil_div(ceil(in_turn), CONSUMER_WARPS)
                later = max(0, rounds - early)
                return (rounds - later) * EARLY_ROUND_US + later * LATER_ROUND_US + merge_us(splits)
        return ceil_div(units, sms) * in_turn * layout.tile_bytes / rate + merge_us(splits)

    return min(split_ladder(spec, sms), key=layer_us)


def choose_split_steps(spec: ModelSpec, sms: int, max_context: int) -> tuple[tuple[int, int], ...]:
    """From which context on attention should split into how many parts.

    Whole tiles make `choose_splits` waver between neighbours; here the number at least doubles from step to step, so
    that a text that gets longer calls for few programs. What lies between would gain less than two percent.

    Args:
        spec: the model.
        sms: SMs of the GPU.
        max_context: positions of the KV cache.

    Returns:
        (first context, splits), both growing; the first context is 0.
    """
    steps = [(0, 1)]
    tiles, most = 1, split_ladder(spec, sms)[-1]
    while (context := (tiles - 1) * TILE_POSITIONS + 1) <= max_context and steps[-1][1] < most:
        splits = choose_splits(spec, sms, context)
        if splits >= 2 * steps[-1][1] or (splits == most and splits > steps[-1][1]):
            steps.append((context, splits))
        tiles += 1 + tiles // 64
    return tuple(steps)


def load_window(spec: ModelSpec) -> int:
    """Chunk loads that an SM keeps in flight.

    Three chunks of 16 KB are enough for nearly full bandwidth, and every load in flight delays the small reads that
    phases wait for. The phases of narrow models are all delay, and two are better. In the middle of a long instruction
    the device keeps one more. Measured on an H200 (docs/performance.md).
    """
    return _chunks_of(spec, 2 if spec.hidden_size <= NARROW else 3)


def load_window_ahead(spec: ModelSpec) -> int:
    """The same while the ring is more than half full: an SM that is ahead leaves the bandwidth to those that are not.

    The rings of narrow models are always full.
    """
    return _chunks_of(spec, 1 if spec.hidden_size <= NARROW else 2)


def first_look(spec: ModelSpec, sms: int) -> int:
    """Cycles that a matvec lets pass before it looks for what consumer warps with units of their own publish.

    Up to four of them have a scheduler of the SM each. Of more, some wait for others, and who need not wait comes too
    early for their words. Measured on an H200 (docs/performance.md).
    """
    return 600 if ceil_div(spec.gate_up_rows, UNIT_ROWS) > 4 * sms else 0


def _chunks_of(spec: ModelSpec, usual: int) -> int:
    """How many of a model's chunks are as many bytes as so many of the usual size, or a little more."""
    return ceil_div(usual * CHUNK_LIMIT, chunk_limit(spec))
