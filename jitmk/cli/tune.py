"""`jitmk tune`: measure what is free to choose for a model on this GPU, and keep what is fastest."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jitmk.cli.options import add_model_options, model_folder
from jitmk.errors import ContextLengthError

if TYPE_CHECKING:
    from jitmk.arch import GpuArch
    from jitmk.engine.tuner import Measurement, Plan
    from jitmk.engine.tuning import Tuning
    from jitmk.jit.tunings import TuningKey
    from jitmk.model.checkpoint import WeightSource
    from jitmk.model.spec import ModelSpec

_MAX_CONTEXT = 8192
"""The largest context that is measured unless told otherwise; splits have settled long before."""
_MIN_CONTEXT = 64
_FIRST_CONTEXT = 128
_FACTOR, _ROUNDS = 2**0.5, 9
_QUICK_FACTOR, _QUICK_ROUNDS = 4.0, 3


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser of `jitmk`."""
    parser = commands.add_parser(
        "tune",
        help="measure what is fastest for a model on this GPU, and keep it",
        description="Measure decode steps with every sensible load window, first look for inputs, schedule policy and "
        "number of attention splits, and keep the fastest beside the compiled kernel: from then on the model runs with "
        "them on this kind of GPU. Leave the GPU to it alone. JITMK_TUNING=off ignores what was kept.",
    )
    add_model_options(parser, backend=False, positional=True, length=False)
    parser.add_argument(
        "--max-context",
        type=int,
        metavar="N",
        help=f"measure contexts up to N positions (default: the model's own, at most {_MAX_CONTEXT})",
    )
    parser.add_argument("--random-weights", action="store_true", help="read config.json only; weights are made up")
    parser.add_argument("--device", help="cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="fewer contexts and rounds")
    parser.add_argument("--dry-run", action="store_true", help="measure and show, but keep nothing")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Rig:
    """A live model on a GPU, to be measured.

    Attributes:
        spec, arch: the model and the GPU.
        key: what its tuning is kept under.
        context: the largest context that can be measured.
        default: what the cost model says.
        measure: microseconds of a decode step with a tuning, behind so many positions.
        close: gives the GPU back.
    """

    spec: ModelSpec
    arch: GpuArch
    key: TuningKey
    context: int
    default: Tuning
    measure: Callable[[Tuning, int], float]
    close: Callable[[], None]


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from tqdm import tqdm

    from jitmk.engine.tuner import choose, make_plan, measure_all

    rig = open_rig(args)
    try:
        factor, rounds = (_QUICK_FACTOR, _QUICK_ROUNDS) if args.quick else (_FACTOR, _ROUNDS)
        plan = make_plan(
            rig.spec, rig.arch, rig.default, first=_FIRST_CONTEXT, last=rig.context, factor=factor, rounds=rounds
        )
        with tqdm(total=plan.launches, desc="measuring", delay=1.0, leave=False, disable=None) as bar:

            def measure(tuning: Tuning, context: int) -> float:
                bar.update()
                return rig.measure(tuning, context)

            measurements = measure_all(plan, rig.default, measure)
    finally:
        rig.close()
    tuning = choose(measurements, rig.default)
    _print_tables(plan, measurements, tuning)
    print(f"default  {rig.default}")
    print(f"chosen   {tuning if tuning != rig.default else 'the same: nothing else is faster by half a percent'}")
    if args.dry_run:
        print("kept     nothing (--dry-run)")
    else:
        _keep(rig, tuning, measurements)
    return 0


def open_rig(args: argparse.Namespace) -> Rig:
    """The model that the options name, on the GPU, with the default tuning and a cache full of noise.

    Raises:
        DeviceError: there is no GPU for it.
        ContextLengthError: --max-context is too short to measure, or longer than the model's context.
    """
    import torch

    from jitmk.engine.megakernel import STEPS_PER_LAUNCH, MegakernelBackend
    from jitmk.engine.select import select_backend
    from jitmk.engine.tuning import default_tuning, tuning_key
    from jitmk.model.checkpoint import Checkpoint, RandomCheckpoint
    from jitmk.model.families import spec_from_config
    from jitmk.model.files import read_config
    from jitmk.program.weights import plan_weights
    from jitmk.settings import get_settings

    gpu = select_backend("megakernel", args.device).gpu
    assert gpu is not None
    folder = model_folder(args)
    config = read_config(folder)
    family = spec_from_config(config, max_seq_len=args.max_context)
    length = min(family.spec.max_positions, args.max_context or _MAX_CONTEXT)
    if length < _MIN_CONTEXT:
        raise ContextLengthError(f"{length} positions are too few to measure; {_MIN_CONTEXT} are the least")
    source: WeightSource
    if args.random_weights:
        source = RandomCheckpoint(family.spec, device=torch.device("cuda", gpu.index))
    else:
        source = Checkpoint.open(folder, family)
    # What is chosen holds for longer caches too, so the defaults are those of the model's whole context.
    default = default_tuning(family.spec, gpu.arch, spec_from_config(config).spec.max_positions)
    try:
        backend = MegakernelBackend(
            family.spec,
            plan_weights(family.spec),
            source,
            gpu,
            max_seq_len=length,
            settings=get_settings(),
            tuning=default,
        )
    finally:
        source.close()
    backend.fill_cache()

    def measure(tuning: Tuning, context: int) -> float:
        backend.use(tuning)
        return backend.step_us(context)

    key = tuning_key(gpu, backend.kernel.key)
    return Rig(family.spec, gpu.arch, key, length - STEPS_PER_LAUNCH, default, measure, backend.close)


def _keep(rig: Rig, tuning: Tuning, measurements: Sequence[Measurement]) -> None:
    """Stores what was chosen, with the medians that it was chosen from."""
    from jitmk.jit import KernelCache, tunings
    from jitmk.settings import get_settings

    settings = get_settings()
    spec = rig.spec
    model = f"{spec.family} of {spec.num_layers} layers, hidden size {spec.hidden_size}"
    measured = [[m.choice, m.value, m.context, round(statistics.median(m.us), 3)] for m in measurements]
    record = tunings.TuningRecord(rig.key, model, asdict(tuning), measured)
    path = tunings.store(KernelCache.from_settings(settings), record)
    print(f"kept     for kernel {rig.key.kernel[:16]} on {rig.key.gpu} ({rig.key.sms} SMs) in {path}")
    if not settings.tuning:
        print("         but JITMK_TUNING=off: it is not used")


def _print_tables(plan: Plan, measurements: Sequence[Measurement], tuning: Tuning) -> None:
    """One table a choice: a row for each context, a column for each value, the chosen one marked."""
    from jitmk.engine.tuner import SPLITS

    for choice in dict.fromkeys(m.choice for m in measurements):
        mine = [m for m in measurements if m.choice == choice]
        values = list(dict.fromkeys(m.value for m in mine))
        rows = [[f"us a step, {choice}", *map(str, values)]]
        for context in sorted({m.context for m in mine}):
            chosen = tuning.splits(context) if choice == SPLITS else getattr(tuning, choice)
            medians = {m.value: statistics.median(m.us) for m in mine if m.context == context}
            cells = [f"{medians[value]:.1f}{'*' if value == chosen else ' '}" for value in values]
            rows.append([f"context {context}", *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for label, *numbers in rows:
            aligned = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
            print("  ".join([label.ljust(widths[0]), *aligned]).rstrip())
        print()
    print(f"medians of {plan.rounds} rounds; * is what was chosen")
