"""Everything that a change to device code must pass, on one GPU, in one command.

    python -m benchmarks.gpu_check --out results [--only tests,memcheck] [--tokens 512]

Runs the GPU tests, every family against transformers, compute-sanitizer's memcheck and racecheck on small models, the
numerics of full-size shapes, and the benchmarks: decode (without its baselines; changes since the committed results are
printed), and sampling, prefill and startup, which fail where a target is missed. Logs and JSON go to the output folder;
exits with 1 where anything failed or could not run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.arguments import count, names

CONTEXTS = "1,127,128,129,4096,8192"
_SANITIZER = ("compute-sanitizer", "--error-exitcode", "3", "--tool")
_TARGET = ("-m", "tests.gpu.sanitizer_target")
_SANITIZED = {
    "": "biases,wide",
    "-fused": "sandwich,layer-post-norm,two-ropes,learned-positions",
    "-unfused": "unfused,unfused-post-norm,unfused-parallel",
}
"""Models of the sanitizer's target, by what is behind the name of a check."""
_RACE_CHECKED = {**_SANITIZED, "": "biases"}
"""The same for racecheck, which reports hazards inside the kernels of cuBLAS that torch takes for long rows."""


@dataclass(frozen=True)
class Check:
    """One command, and how long it may take in seconds."""

    name: str
    command: tuple[str, ...]
    seconds: int


@dataclass(frozen=True)
class Outcome:
    """How a check ended: "passed", or what went wrong."""

    name: str
    result: str
    seconds: float


def checks(out: Path, tokens: int) -> tuple[Check, ...]:
    """All checks, in the order in which they run."""
    python = sys.executable
    return (
        Check("tests", (python, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"), 420),
        Check("models", (python, "-m", "pytest", "-q", "-m", "gpu", "tests/models"), 420),
        *(
            Check(tool + suffix, (*_SANITIZER, tool, python, *_TARGET, *flags, "--models", models), 420)
            for tool, flags, sets in (
                ("memcheck", (), _SANITIZED),
                ("racecheck", ("--race-check",), _RACE_CHECKED),
            )
            for suffix, models in sets.items()
        ),
        Check(
            "numerics",
            (python, "-m", "benchmarks.numerics", "--contexts", CONTEXTS, "--json", str(out / "numerics.json")),
            540,
        ),
        Check(
            "decode",
            (
                *(python, "-m", "benchmarks.decode", "--baselines", "none", "--compare"),
                *("--tokens", str(tokens), "--json", str(out / "decode.json")),
            ),
            480,
        ),
        Check("sampling", (python, "-m", "benchmarks.sampling", "--json", str(out / "sampling.json")), 240),
        Check("prefill", (python, "-m", "benchmarks.prefill", "--json", str(out / "prefill.json")), 240),
        Check("startup", (python, "-m", "benchmarks.startup", "--json", str(out / "startup.json")), 480),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the checks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    known = [check.name for check in checks(Path(), 2)]
    parser.add_argument(
        "--only", type=names(known), default=known, metavar="A,B", help=f"of {', '.join(known)} (default: all)"
    )
    parser.add_argument(
        "--tokens", type=count(2), default=512, metavar="N", help="tokens a run of the decode benchmark (default: 512)"
    )
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes = [run(check, args.out) for check in checks(args.out, args.tokens) if check.name in args.only]
    (args.out / "checks.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    for outcome in outcomes:
        print(f"{outcome.name:10} {outcome.seconds:6.1f} s  {outcome.result}")
    return 0 if all(outcome.result == "passed" for outcome in outcomes) else 1


def run(check: Check, out: Path) -> Outcome:
    """Runs one check with its output in a log, the end of which is printed."""
    if shutil.which(check.command[0]) is None:
        return Outcome(check.name, f"{check.command[0]} is not installed", 0.0)
    begin = time.perf_counter()
    log = out / f"{check.name}.log"
    with log.open("wb") as stream:
        try:
            status = subprocess.run(check.command, stdout=stream, stderr=subprocess.STDOUT, timeout=check.seconds)
            result = "passed" if status.returncode == 0 else f"failed with status {status.returncode}"
        except subprocess.TimeoutExpired:
            result = f"took longer than {check.seconds} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print(f"== {check.name}: {result}", *lines[-25:], sep="\n", flush=True)
    return Outcome(check.name, result, time.perf_counter() - begin)


if __name__ == "__main__":
    sys.exit(main())
