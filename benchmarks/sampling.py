"""What sampling costs beside greedy decoding: microseconds a token of `Model.generate` in each way to choose a token.

    python -m benchmarks.sampling --models llama-3.2-1b --context 128 --json sampling.json

The ways take turns, so that what changes on the machine changes for all. Tokens are compared with fp32 first. Exits
with 1 where that does not hold, or where a way costs more than it may.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.arguments import add_json, count, names
from benchmarks.environment import describe
from benchmarks.measure import CHECK_TOKENS, Live, announce, open_gpu, usable_contexts
from benchmarks.records import DTYPE, default_path, format_table, write_json
from benchmarks.shapes import CONFIGS
from benchmarks.truth import require_transformers
from jitmk.errors import JitmkError


@dataclass(frozen=True)
class Way:
    """A way to choose a token.

    Attributes:
        name: for the record. arguments: of `generate`.
        target: how many times greedy's time it may take.
    """

    name: str
    arguments: dict[str, Any]
    target: float


GREEDY = Way("greedy", {"temperature": 0}, 1.0)

WAYS = (
    GREEDY,
    Way("temperature 0.8", {"temperature": 0.8, "seed": 1}, 1.01),
    Way("top-k 50", {"temperature": 0.8, "top_k": 50, "seed": 1}, 1.05),
    Way("top-p 0.9", {"temperature": 0.8, "top_p": 0.9, "seed": 1}, 1.05),
    Way("min-p 0.05", {"temperature": 0.8, "min_p": 0.05, "seed": 1}, 1.05),
)


@dataclass(frozen=True)
class SamplingRecord:
    """One way on one model.

    Attributes:
        us_per_token: median over the runs, microseconds; all_us_per_token: each run's mean.
        ratio: to greedy; target: what it may be.
    """

    model: str
    context: int
    batch: int
    dtype: str
    tokens: int
    way: str
    us_per_token: float
    ratio: float
    target: float
    all_us_per_token: list[float]

    @property
    def met(self) -> bool:
        """Whether it costs no more than it may."""
        return self.ratio <= self.target


def measure(live: Live, context: int, tokens: int, repeats: int) -> list[SamplingRecord]:
    """Generates in every way in turn, `repeats` times after once to warm up."""
    times: dict[str, list[float]] = {way.name: [] for way in WAYS}
    for run in range(repeats + 1):
        for way in WAYS:
            us, _ = live.generate(context, tokens, **way.arguments)
            if run > 0:
                times[way.name].append(us)
    greedy = statistics.median(times[GREEDY.name])
    records = []
    for way in WAYS:
        us = statistics.median(times[way.name])
        records.append(
            SamplingRecord(live.name, context, 1, DTYPE, tokens, way.name, us, us / greedy, way.target, times[way.name])
        )
    return records


def print_records(records: Sequence[SamplingRecord]) -> None:
    """The records as a table on stdout."""
    rows = [["model", "context", "way", "us/token", "to greedy", "target", ""]]
    for record in records:
        rows.append(
            [
                record.model,
                str(record.context),
                record.way,
                f"{record.us_per_token:.1f}",
                f"{record.ratio:.3f}",
                f"{record.target:.2f}",
                "" if record.met else "MISSED",
            ]
        )
    print(format_table(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    args = _parse(arguments)
    records: list[SamplingRecord] = []
    checks = []
    try:
        require_transformers()
        gpu = open_gpu()
        environment = describe(gpu)
        print(announce(gpu, environment), file=sys.stderr)
        for name in args.models:
            usable_contexts(name, [args.context], max(args.tokens, CHECK_TOKENS))
            with Live.open(gpu, name, args.context + max(args.tokens, CHECK_TOKENS)) as live:
                checks += live.check([args.context])
                records += measure(live, args.context, args.tokens, args.repeats)
    except JitmkError as error:
        print(f"benchmarks.sampling: error: {error}", file=sys.stderr)
        return 1
    content = {
        "environment": environment,
        "records": [asdict(record) | {"met": record.met} for record in records],
        "checks": [check.content() for check in checks],
    }
    write_json(args.json or default_path("sampling", gpu.name), content)
    print_records(records)
    return 0 if all(record.met for record in records) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", type=names(CONFIGS), default=["llama-3.2-1b"], metavar="A,B", help="(default: llama-3.2-1b)"
    )
    parser.add_argument("--context", type=count(1), default=128, metavar="N", help="tokens of the prompt (128)")
    parser.add_argument("--tokens", type=count(2), default=512, metavar="N", help="tokens a run (default: 512)")
    parser.add_argument("--repeats", type=count(1), default=7, metavar="N", help="timed runs of each way (default: 7)")
    add_json(parser, "sampling")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
