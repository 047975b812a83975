"""What a decode benchmark yields: its records, the JSON file that holds them, and tables for people.

The file is {"environment", "records", "checks", "failures"}: what it was measured with (`environment.describe`), a
`Record` for every system that was measured, the `Comparison`s with the truth that came before, and a `Failure` for what
could not be measured or was not sound.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jitmk.errors import JitmkError

RESULTS = Path(__file__).parent / "results"
"""Where committed results lie."""

JITMK = "jitmk"
"""The `baseline` of jitmk's own records."""

DTYPE = "bfloat16"


class BenchmarkError(JitmkError):
    """A benchmark cannot run, or a file of results cannot be used."""


@dataclass(frozen=True)
class Workload:
    """What is decoded, and how fast that can be at best.

    Attributes:
        model: a name of `shapes.CONFIGS`.
        context: tokens of the prompt.
        tokens: generated tokens of a run; the first one comes from the prompt and is not timed.
        mean_context: mean number of positions whose keys and values a timed step reads.
        bytes: what a step must read at `mean_context`.
        ceiling_us: microseconds to stream that, measured in the same run.
    """

    model: str
    context: int
    tokens: int
    mean_context: float
    bytes: int
    ceiling_us: float


@dataclass(frozen=True)
class Record:
    """One system on one workload.

    Attributes:
        model, context, tokens, mean_context, bytes, ceiling_us: of the `Workload`.
        batch, dtype: sequences at once; type of weights and cache.
        baseline: the system: "jitmk", or a value of `baselines.KINDS`.
        us_per_token: median over the runs, microseconds; all_us_per_token: each run's mean.
        tokens_per_second: of decoding; ratio: us_per_token / ceiling_us.
        prefill_ms: median time to the first token; host_launch_us: median time that a launch into an idle stream keeps
            the host; queued_launch_us: the same of one queued behind another, as all but the first of a generation are;
            first_ms: the first run, compiling included, while others did so too. None where it was not measured.
    """

    model: str
    context: int
    batch: int
    dtype: str
    baseline: str
    us_per_token: float
    ceiling_us: float
    ratio: float
    tokens_per_second: float
    tokens: int
    mean_context: float
    bytes: int
    all_us_per_token: list[float]
    prefill_ms: float | None = None
    host_launch_us: float | None = None
    queued_launch_us: float | None = None
    first_ms: float | None = None

    @classmethod
    def of(
        cls,
        work: Workload,
        baseline: str,
        times: Sequence[float],
        *,
        prefill_ms: float | None = None,
        host_launch_us: float | None = None,
        queued_launch_us: float | None = None,
        first_ms: float | None = None,
    ) -> Record:
        """The record of some runs, given microseconds a token of each."""
        us = statistics.median(times)
        return cls(
            **asdict(work),
            batch=1,
            dtype=DTYPE,
            baseline=baseline,
            us_per_token=us,
            ratio=us / work.ceiling_us,
            tokens_per_second=1e6 / us,
            all_us_per_token=list(times),
            prefill_ms=prefill_ms,
            host_launch_us=host_launch_us,
            queued_launch_us=queued_launch_us,
            first_ms=first_ms,
        )

    @property
    def key(self) -> tuple[str, int, int, str, str]:
        """What makes two records of two files the same measurement."""
        return self.model, self.context, self.batch, self.dtype, self.baseline


@dataclass(frozen=True)
class Comparison:
    """What jitmk made of one prompt, held against the truth: the same weights in fp32 through transformers.

    Attributes:
        model: name of the shape; context, tokens: of the prompt and behind it.
        error, kl: relative error over all logits and mean KL divergence (nats) of jitmk's logits; bf16_error, bf16_kl:
            of transformers in bf16.
        decided: tokens whose margin in the truth exceeds what bf16 moved any logit by, twice.
        wrong: of those, how many jitmk chose otherwise.
    """

    model: str
    context: int
    tokens: int
    error: float
    bf16_error: float
    kl: float
    bf16_kl: float
    decided: int
    wrong: int

    @property
    def holds(self) -> bool:
        """Whether jitmk is at least as close to the truth as bf16 is, and decides as it does."""
        return self.error <= self.bf16_error and self.kl <= self.bf16_kl and self.wrong == 0

    def content(self) -> dict[str, Any]:
        """For a file of results."""
        return asdict(self) | {"holds": self.holds}

    def __str__(self) -> str:
        return (
            f"{self.model} at {self.context}: error {self.error:.5f} (bf16 {self.bf16_error:.5f}), "
            f"KL {self.kl:.2e} (bf16 {self.bf16_kl:.2e}), {self.wrong} of {self.decided} decided tokens wrong"
            + ("" if self.holds else "  FAILED")
        )


@dataclass(frozen=True)
class Failure:
    """What has no record, and why."""

    model: str
    baseline: str
    why: str
    context: int | None = None

    def __str__(self) -> str:
        return f"{self.baseline}, {self.model}{f' at {self.context}' if self.context else ''}: {self.why}"


def default_path(kind: str, device: str) -> Path:
    """Where the results of a GPU lie: for "decode" and "NVIDIA H200", benchmarks/results/decode-h200.json."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    return RESULTS / f"{'-'.join([kind, *(word for word in words if word != 'nvidia')])}.json"


def write_results(
    path: Path,
    environment: Mapping[str, Any],
    records: Sequence[Record],
    checks: Sequence[Comparison],
    failures: Sequence[Failure],
) -> None:
    """Writes a file of results."""
    write_json(
        path,
        {
            "environment": dict(environment),
            "records": [asdict(record) for record in records],
            "checks": [check.content() for check in checks],
            "failures": [asdict(failure) for failure in failures],
        },
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON, in folders that are made where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_records(path: Path) -> list[Record]:
    """The records of a file. Raises BenchmarkError where there is none, or where it holds something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}") from error
    return parse_records(text, str(path))


def parse_records(text: str, name: str) -> list[Record]:
    """The records of a file's text; raises BenchmarkError, which calls the file `name`."""
    try:
        return [Record(**record) for record in json.loads(text)["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{name} does not hold results of benchmarks.decode ({type(error).__name__}: {error}); measure them anew"
        ) from error


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them the heads, as aligned text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
