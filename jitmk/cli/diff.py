"""`jitmk diff`: where two backends differ beyond rounding."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jitmk.cli.options import add_model_options, model_folder
from jitmk.errors import BackendError, GenerationError

if TYPE_CHECKING:
    from jitmk.engine.compare import PhaseCheck, StepChecker
    from jitmk.model.checkpoint import Checkpoint

_SHOWN_ROWS = 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser of `jitmk`."""
    parser = commands.add_parser(
        "diff",
        help="compare two backends phase by phase",
        description="Run the same tokens through two backends, hold every phase of each to the reference opcode on "
        "that backend's own inputs, and name the first phase, layer and rows that differ beyond rounding.",
    )
    add_model_options(parser, backend=False, positional=True)
    parser.add_argument(
        "--backends",
        metavar="A,B",
        help="two of megakernel, reference, torch, schedule:POLICY "
        "(default: megakernel,reference where there is a GPU for it, else schedule:level,reference)",
    )
    parser.add_argument("--context", type=int, default=40, metavar="N", help="tokens of the prompt (default: 40)")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="decode steps to compare (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the prompt's random tokens (default: 0)")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class _Side:
    """One of the two backends: its name, the backend, and whether it rounds where the device does."""

    name: str
    backend: Any
    rounds: bool


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status: 1 if something differs beyond rounding."""
    import torch

    from jitmk.engine.compare import StepChecker
    from jitmk.engine.resident import load_resident
    from jitmk.model.checkpoint import Checkpoint
    from jitmk.model.families import spec_from_config
    from jitmk.model.files import read_config
    from jitmk.program.weights import plan_weights

    names = _backend_names(args.backends)
    folder = model_folder(args)
    family = spec_from_config(read_config(folder), max_seq_len=args.max_seq_len)
    _check_lengths(args, family.spec.max_positions)
    with Checkpoint.open(folder, family) as checkpoint:
        sides = [_open(name, checkpoint, args.context + args.steps) for name in names]
        weights = load_resident(plan_weights(checkpoint.spec), checkpoint, torch.device("cpu"))
        checker = StepChecker(checkpoint.spec, weights)
    generator = torch.Generator().manual_seed(args.seed)
    ids = torch.randint(family.spec.vocab_size, (args.context + args.steps,), generator=generator).tolist()
    try:
        return _compare(sides, checker, ids, args.context)
    finally:
        for side in sides:
            side.backend.close()


def _compare(sides: list[_Side], checker: StepChecker, ids: list[int], context: int) -> int:
    """Prefills both, then decodes and checks one token after the other. The tokens are given, not sampled."""
    for side in sides:
        side.backend.prefill(ids[:context])
    print(f"{context} tokens of context, {len(ids) - context} steps: {sides[0].name} and {sides[1].name}")
    worst: list[dict[str, float]] = [{}, {}]
    found = False
    for position in range(context, len(ids)):
        steps = [side.backend.phase_outputs(ids[position], position) for side in sides]
        error = (steps[0]["logits"] - steps[1]["logits"]).norm() / steps[1]["logits"].norm()
        print(f"position {position}: logits differ by {float(error):.2e} (root mean square, relative)")
        for side, outputs, margins in zip(sides, steps, worst, strict=True):
            first = None
            for check in _checks(checker, side, outputs, ids[position], position):
                kind = check.phase.split(".")[-1]
                margins[kind] = max(margins.get(kind, 0.0), check.worst)
                first = first or (None if check.sound else check)
            if first is not None:
                found = True
                print(_finding(side.name, position, first))
    _print_margins(sides, worst)
    print("beyond rounding: see above" if found else "all differences are rounding")
    return 1 if found else 0


def _checks(checker: StepChecker, side: _Side, outputs: Any, token: int, position: int) -> Iterator[PhaseCheck]:
    from jitmk.engine.compare import Observation

    return checker.check(Observation(token, position, outputs, side.backend.cached, side.rounds))


def _finding(name: str, position: int, check: PhaseCheck) -> str:
    rows = ", ".join(map(str, check.rows[:_SHOWN_ROWS]))
    more = f" and {len(check.rows) - _SHOWN_ROWS} more" if len(check.rows) > _SHOWN_ROWS else ""
    layer = "no layer" if check.layer is None else f"layer {check.layer}"
    return (
        f"{name} at position {position}: the first phase beyond rounding is {check.phase} ({layer}), {check.buffer}, "
        f"rows {rows}{more}: off by up to {check.difference:.3g}, {check.worst:.3g} times the bound"
    )


def _print_margins(sides: list[_Side], worst: list[dict[str, float]]) -> None:
    """The largest difference of each kind of phase, in units of its bound."""
    width = max(map(len, worst[0]))
    print(f"{'largest difference / bound':{width}}  " + "  ".join(side.name for side in sides))
    for kind in worst[0]:
        cells = (f"{margins[kind]:.2g}".rjust(len(side.name)) for side, margins in zip(sides, worst, strict=True))
        print(f"{kind:{width}}".ljust(len("largest difference / bound")) + "  " + "  ".join(cells))


def _backend_names(text: str | None) -> list[str]:
    if text is None:
        from jitmk.engine.select import select_backend
        from jitmk.schedule.build import DEFAULT_POLICY

        on_gpu = select_backend("auto").backend == "megakernel"
        return ["megakernel" if on_gpu else f"schedule:{DEFAULT_POLICY}", "reference"]
    names = text.split(",")
    if len(names) != 2:
        raise BackendError(f"--backends {text} is not possible: name two, with a comma between them")
    return names


def _open(name: str, checkpoint: Checkpoint, positions: int) -> _Side:
    from jitmk.engine.schedule_backend import ScheduleBackend
    from jitmk.engine.select import open_backend, select_backend
    from jitmk.program.weights import plan_weights
    from jitmk.schedule.build import DEFAULT_POLICY
    from jitmk.settings import get_settings

    kind, _, policy = name.partition(":")
    if kind == "schedule":
        backend: Any = ScheduleBackend(
            checkpoint.spec, plan_weights(checkpoint.spec), checkpoint, policy or DEFAULT_POLICY
        )
        return _Side(backend.name, backend, rounds=True)
    if name not in ("megakernel", "reference", "torch"):
        raise BackendError(
            f"--backends: {name!r} does not exist; there are megakernel, reference, torch and schedule:POLICY"
        )
    selection = select_backend(name)
    backend = open_backend(selection, checkpoint, max_seq_len=positions, settings=get_settings())
    return _Side(name, backend, rounds=name != "torch")


def _check_lengths(args: argparse.Namespace, limit: int) -> None:
    if args.context < 1 or args.steps < 1 or args.context + args.steps > limit:
        raise GenerationError(
            f"--context {args.context} --steps {args.steps} is not possible: each is at least 1, and together they are "
            f"at most the model's {limit} positions"
        )
