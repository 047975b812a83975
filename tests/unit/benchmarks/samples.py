"""Records and comparisons to test with."""

from __future__ import annotations

from benchmarks.records import JITMK, Comparison, Record, Workload


def workload(model: str = "llama-3.2-1b", context: int = 128, ceiling_us: float = 500.0, tokens: int = 512) -> Workload:
    return Workload(model, context, tokens, context + (tokens - 2) / 2, 1_000_000, ceiling_us)


def record(
    us: float = 550.0,
    baseline: str = JITMK,
    model: str = "llama-3.2-1b",
    context: int = 128,
    ceiling_us: float = 500.0,
) -> Record:
    return Record.of(workload(model, context, ceiling_us), baseline, [us])


def comparison(error: float = 0.01, kl: float = 1e-5, wrong: int = 0, model: str = "llama-3.2-1b") -> Comparison:
    """By default one that holds."""
    return Comparison(model, 128, 64, error, 0.02, kl, 1e-4, 40, wrong)
