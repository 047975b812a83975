"""What a schedule costs a stream of weights, by a model of the machine instead of a GPU.

    python -m benchmarks.simulate [--models qwen2.5-1.5b,llama-3.2-3b] [--policies level,round_robin] [--sms 132]

Every SM loads its units in the order of its queue, as fast as the memory and its own share of it allow, until its ring
is full. It works through them as soon as the phase's input is there, and that is a hop after the last SM was through
with the phase before. Microseconds a layer beyond those that the bytes alone take are what dependencies and an uneven
schedule cost. docs/performance.md holds that against measurements: it tells models and policies apart, but says nothing
of what warps do between two phases.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.arguments import count, names
from benchmarks.shapes import CONFIGS, model_spec
from jitmk.arch import GpuArch
from jitmk.codegen import ring_chunks
from jitmk.engine.step_programs import kernel_variants
from jitmk.model.spec import ModelSpec
from jitmk.program.chunks import chunk_bytes, chunk_limit
from jitmk.program.configs import MatvecConfig
from jitmk.program.isa import Opcode
from jitmk.program.lowering import lower
from jitmk.program.packing import BLOCK_BYTES, CONSUMER_WARPS
from jitmk.schedule.build import make_schedule
from jitmk.schedule.policies import POLICIES

Row = npt.NDArray[np.float64]

_LAYERS = 8
"""Layers that are simulated; the second half of them counts."""
_EARLY_BLOCKS = 16
"""Blocks of a warp's slice that consumers keep in registers while they wait, twice as many of units of three chunks."""


@dataclass(frozen=True)
class Machine:
    """An H200.

    Attributes:
        bytes_per_us: of the whole memory.
        sm_bytes_per_us: that an SM can load when others do not.
        work_bytes_per_us: of its ring that an SM gets through.
        hop_us: from the last word of a phase until the next one's input is everywhere.
        attention_us: of attention and the hop behind it, on top of the hop to it.
        tick_us: of the simulation.
    """

    bytes_per_us: float = 4.62e6
    sm_bytes_per_us: float = 46e3
    work_bytes_per_us: float = 70e3
    hop_us: float = 1.4
    attention_us: float = 2.8
    tick_us: float = 0.05


@dataclass(frozen=True)
class StreamPhase:
    """A projection, as far as its weights are concerned.

    Attributes:
        bytes: of each SM, [sms].
        early: bytes of it that an SM holds in registers while it waits.
        filled: the part of a slot of the ring that a chunk fills.
        behind_attention: whether attention stands between it and the projection before.
    """

    bytes: Row
    early: float
    filled: float
    behind_attention: bool


@dataclass(frozen=True)
class LayerTime:
    """Microseconds a layer: those that its bytes take, and those that the simulation does."""

    stream_us: float
    simulated_us: float

    @property
    def excess_us(self) -> float:
        return self.simulated_us - self.stream_us


def simulate(spec: ModelSpec, arch: GpuArch, policy: str, machine: Machine = Machine()) -> LayerTime:
    """The time of a layer with the schedule of a policy, at a short context with one split."""
    phases, layers = _phases(spec, arch, policy)
    limit = chunk_limit(spec)
    ring = ring_chunks(kernel_variants(spec), arch) * chunk_bytes(limit)
    ends = _run(phases, ring, machine)
    of_layer = len(phases) // layers
    last = ends[of_layer - 1 :: of_layer]
    half = layers // 2
    stream = sum(phase.bytes.sum() for phase in phases) / layers / machine.bytes_per_us
    return LayerTime(float(stream), (last[-1] - last[half - 1]) / (layers - half))


def _phases(spec: ModelSpec, arch: GpuArch, policy: str) -> tuple[list[StreamPhase], int]:
    """The projections of the first layers, and how many layers these are."""
    schedule = make_schedule(lower(spec), arch, policy)
    layers = min(_LAYERS, spec.num_layers)
    limit, found, attended = chunk_limit(spec), [], False
    units = np.zeros((len(schedule.program.phases), arch.sm_count))
    table = schedule.table
    np.add.at(units, (table.phase, table.sm), table.unit_count)
    for phase in schedule.program.phases:
        config = phase.variant.config
        attended |= phase.variant.opcode is Opcode.ATTENTION
        if phase.layer is None or phase.layer >= layers or not isinstance(config, MatvecConfig):
            continue
        layout = config.layout
        early = _EARLY_BLOCKS * (2 if layout.chunks >= 3 else 1) * CONSUMER_WARPS * BLOCK_BYTES
        filled = layout.blocks / (limit * layout.chunks)
        found.append(StreamPhase(units[phase.index] * layout.unit_bytes, early, filled, attended))
        attended = False
    return found, layers


def _run(phases: Sequence[StreamPhase], ring: float, machine: Machine) -> list[float]:
    """When each phase is through on all SMs, in microseconds."""
    ends_at = np.cumsum([phase.bytes for phase in phases], axis=0)
    total = sum(phase.bytes.sum() for phase in phases)
    capacity = ring * total / sum(phase.bytes.sum() / phase.filled for phase in phases)
    loaded, done = np.zeros_like(ends_at[0]), np.zeros_like(ends_at[0])
    now = ready_at = 0.0
    current, ends = 0, list[float]()
    while current < len(phases):
        ready = now >= ready_at
        may_do = ends_at[current] if ready else ends_at[current - 1] if current else np.zeros_like(done)
        # Who is through waits for the next phase, with its first weights in registers.
        waiting = phases[min(current + ready, len(phases) - 1)]
        early = np.where(done >= may_do - 1, np.minimum(waiting.early, waiting.bytes), 0.0)
        may_load = np.minimum(done + capacity + early, ends_at[-1])
        active = loaded < may_load - 1
        share = min(machine.sm_bytes_per_us, machine.bytes_per_us / max(1, int(active.sum())))
        loaded = np.where(active, np.minimum(loaded + share * machine.tick_us, may_load), loaded)
        done = np.minimum(np.minimum(done + machine.work_bytes_per_us * machine.tick_us, loaded), may_do)
        now += machine.tick_us
        if ready and bool((done >= ends_at[current] - 1).all()):
            ends.append(now)
            current += 1
            attention = current < len(phases) and phases[current].behind_attention
            ready_at = now + machine.hop_us + (machine.attention_us if attention else 0.0)
    return ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each model; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=names(CONFIGS), default=list(CONFIGS), metavar="A,B", help="shapes (default: all)"
    )
    parser.add_argument(
        "--policies",
        type=names(POLICIES),
        default=["level", "round_robin"],
        metavar="A,B",
        help=f"of {', '.join(POLICIES)} (default: level,round_robin)",
    )
    parser.add_argument("--sms", type=count(1), default=132, metavar="N", help="SMs of the GPU (default: %(default)s)")
    args = parser.parse_args(arguments)
    arch = GpuArch.parse("sm_90a", sm_count=args.sms)
    print("microseconds a layer: of its bytes, and beyond them by policy")
    print(f"{'model':18} {'bytes':>8} " + " ".join(f"{policy:>12}" for policy in args.policies))
    for name in args.models:
        spec = model_spec(name, 256)
        times = [simulate(spec, arch, policy) for policy in args.policies]
        cells = " ".join(f"{time.excess_us:12.2f}" for time in times)
        print(f"{name:18} {times[0].stream_us:8.2f} {cells}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
