"""Microseconds a token of what `Model.generate` delivers, beside the stream ceiling and other systems, in one command.

    python -m benchmarks.decode
    python -m benchmarks.decode --models llama-3.2-1b --contexts 128,1024 --baselines none --json result.json
    python -m benchmarks.decode --family-models

Weights are random, batch 1, greedy. Every model's tokens are compared with fp32 first; one that does not compute what
it should is not measured, and the exit status is 1. The ceiling is the time to read the step's weights and the keys and
values of the mean context once. `--family-models` measures models of other families than Llama at a context of 128 and
shows each beside the Llama of the nearest size; their results have a file of their own, families-<gpu>.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import families
from benchmarks.arguments import add_json, count, counts, names, number
from benchmarks.baselines import KINDS, run_baselines
from benchmarks.compare import add_fail_on_regression, committed_records, report
from benchmarks.environment import clocks_under_load, describe
from benchmarks.measure import CHECK_TOKENS, Live, announce, open_gpu, usable_contexts, workloads
from benchmarks.plot import draw
from benchmarks.records import (
    JITMK,
    BenchmarkError,
    Comparison,
    Failure,
    Record,
    Workload,
    default_path,
    format_table,
    read_records,
    write_results,
)
from benchmarks.references import NOTE, references_of
from benchmarks.shapes import CONFIGS, FAMILY_MODELS, LLAMAS
from benchmarks.truth import require_transformers
from jitmk.cuda.device import Device
from jitmk.errors import JitmkError

COMMITTED = Path("the committed results")
"""What --compare without a file stands for."""


@dataclass
class Results:
    """What a run has found out so far; see `records.write_results`."""

    environment: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    checks: list[Comparison] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Writes the file of results."""
        write_results(path, self.environment, self.records, self.checks, self.failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    args = _parse(arguments)
    try:
        require_transformers()
        gpu = open_gpu()
        committed = default_path(args.kind, gpu.name)
        path: Path = args.json or committed
        before = _records_before(args, committed)
        results = Results(describe(gpu))
        print(announce(gpu, results.environment), file=sys.stderr)
        jobs = _measure_models(gpu, args, results, path)
        records, failures = run_baselines([(kind, work) for kind in args.baselines for work in jobs], args.timeout)
        results.records += records
        results.failures += failures
        results.write(path)
    except JitmkError as error:
        print(f"benchmarks.decode: error: {error}", file=sys.stderr)
        return 1
    print_results(results.records, results.failures, args.models)
    print(f"results: {path}")
    if args.family_models:
        families.report(results.records, default_path("decode", gpu.name))
    else:
        _draw(results.records, path.with_suffix(".svg"))
    status = 1 if any(failure.baseline == JITMK for failure in results.failures) else 0
    if before is not None:
        status |= report(before, results.records, args.fail_on_regression)
    return status


def measure_model(gpu: Device, live: Live, jobs: Sequence[Workload], repeats: int, results: Results) -> None:
    """Checks one model at every context, then times it there; adds to the results."""
    results.checks += live.check([work.context for work in jobs])
    first = jobs[0].context
    clocks = clocks_under_load(gpu.index, lambda: live.generate(first, CHECK_TOKENS))
    results.environment.setdefault("clocks_under_load", {})[live.name] = clocks
    for work in jobs:
        live.generate(work.context, work.tokens)  # warms up
        runs = [live.generate(work.context, work.tokens) for _ in range(repeats)]
        launch = live.host_launch_us(work.context)
        record = Record.of(
            work,
            JITMK,
            [us for us, _ in runs],
            prefill_ms=statistics.median(prefill for _, prefill in runs),
            host_launch_us=launch.idle,
            queued_launch_us=launch.queued,
        )
        results.records.append(record)
        print(
            f"{work.model} at {work.context}: {record.us_per_token:.1f} us a token, {record.ratio:.3f} x ceiling",
            file=sys.stderr,
        )


def print_results(records: Sequence[Record], failures: Sequence[Failure], models: Sequence[str]) -> None:
    """Records and references as a table on stdout, model by model, and what failed."""
    rows = [["model", "context", "system", "us/token", "tokens/s", "ceiling us", "ratio", "prefill ms", "launch us"]]
    for model in models:
        rows += [_row(record) for record in records if record.model == model]
        for reference in references_of([model]):
            context = "-" if reference.context is None else str(reference.context)
            system = f"{reference.system}, {reference.what} *"
            rate = f"{1e6 / reference.us_per_token:.0f}"
            rows.append([model, context, system, f"{reference.us_per_token:.1f}", rate, "-", "-", "-", "-"])
    print(format_table(rows))
    if references_of(models):
        print(f"* {NOTE}")
    for failure in failures:
        print(f"FAILED: {failure}")


def _row(record: Record) -> list[str]:
    return [
        record.model,
        str(record.context),
        record.baseline,
        f"{record.us_per_token:.1f}",
        f"{record.tokens_per_second:.0f}",
        f"{record.ceiling_us:.1f}",
        f"{record.ratio:.3f}",
        "-" if record.prefill_ms is None else f"{record.prefill_ms:.1f}",
        "-" if record.queued_launch_us is None else f"{record.queued_launch_us:.1f}",
    ]


def _measure_models(gpu: Device, args: argparse.Namespace, results: Results, path: Path) -> list[Workload]:
    """Measures jitmk on every model; returns what the baselines are to decode, with ceilings of the same moment.

    Results are written after each model: a run that is cut short leaves what there was.
    """
    jobs = []
    for name in args.models:
        longest = max(args.tokens, CHECK_TOKENS)
        try:
            contexts = usable_contexts(name, args.contexts, longest)
            own = [(context, args.tokens) for context in contexts]
            others = [(context, args.baseline_tokens) for context in args.baseline_contexts] if args.baselines else []
            found = workloads(gpu, name, own + others)
            jobs += found[len(own) :]
            with Live.open(gpu, name, max(contexts) + longest) as live:
                measure_model(gpu, live, found[: len(own)], args.repeats, results)
        except (JitmkError, torch.cuda.OutOfMemoryError) as error:
            results.failures.append(Failure(name, JITMK, str(error)))
            print(f"{name}: FAILED: {error}", file=sys.stderr)
        results.write(path)
    return jobs


def _records_before(args: argparse.Namespace, committed: Path) -> list[Record] | None:
    """What the new records are to be compared with, if anything; read before it may be written over."""
    if args.compare is None:
        return None
    if args.compare != COMMITTED:
        return read_records(args.compare)
    before = committed_records(committed)
    if before is None and args.fail_on_regression is not None:
        raise BenchmarkError(f"there are no results to compare with at {committed}; name a file: --compare FILE")
    return before or []


def _draw(records: Sequence[Record], path: Path) -> None:
    try:
        draw(records, path)
    except BenchmarkError as error:
        print(f"no plot: {error}")
    else:
        print(f"plot: {path}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--models",
        type=names(CONFIGS),
        metavar="A,B",
        help=f"of {', '.join(CONFIGS)} (default: {','.join(LLAMAS)})",
    )
    which.add_argument(
        "--family-models",
        action="store_true",
        help=f"measure {', '.join(FAMILY_MODELS)}: at 128 alone, without baselines, unless told otherwise",
    )
    parser.add_argument(
        "--contexts",
        type=counts,
        metavar="N,M",
        help="prompt lengths (default: 128,4096,8192; with --family-models 128)",
    )
    parser.add_argument("--tokens", type=count(2), default=512, metavar="N", help="tokens a run (default: 512)")
    parser.add_argument("--repeats", type=count(1), default=5, metavar="N", help="timed runs (default: 5)")
    parser.add_argument(
        "--baselines",
        type=names(KINDS, none=True),
        metavar="A,B",
        help=f"of {', '.join(KINDS)}; or none (default: all, or none for families)",
    )
    parser.add_argument(
        "--baseline-contexts", type=counts, default=[128], metavar="N,M", help="their prompt lengths (default: 128)"
    )
    parser.add_argument(
        "--baseline-tokens", type=count(2), default=32, metavar="N", help="their tokens a run (default: 32)"
    )
    parser.add_argument(
        "--baseline-timeout",
        dest="timeout",
        type=number,
        default=240.0,
        metavar="S",
        help="seconds that each may take to compile, and again to run (default: 240)",
    )
    add_json(parser, "decode", " or, of families, families-<gpu>.json")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="?",
        const=COMMITTED,
        metavar="FILE",
        help="print how ratios changed since these results (without a file: the committed ones of this GPU)",
    )
    add_fail_on_regression(parser)
    args = parser.parse_args(arguments)
    family = args.family_models
    args.kind = "families" if family else "decode"
    args.models = args.models or list(FAMILY_MODELS if family else LLAMAS)
    args.contexts = args.contexts or ([128] if family else [128, 4096, 8192])
    if args.baselines is None:
        args.baselines = [] if family else list(KINDS)
    if args.fail_on_regression is not None and args.compare is None:
        args.compare = COMMITTED
    return args


if __name__ == "__main__":
    sys.exit(main())
