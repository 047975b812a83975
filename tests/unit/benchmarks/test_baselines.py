from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import baselines
from benchmarks.baselines import KINDS, REPEATS, measure, run_baselines
from benchmarks.records import Workload
from tests.support.checkpoints import TINY_OF
from tests.unit.benchmarks.samples import workload

Command = Callable[[str, Workload], list[str]]


def child(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text), *arguments]


WELL_BEHAVED = """
    import json, pathlib, sys
    notes = pathlib.Path(sys.argv[1])
    print("a line that nobody asked for")
    (notes / f"ready-{sys.argv[2]}").touch()
    print("ready", flush=True)
    assert sys.stdin.readline()
    others = sorted(path.name for path in notes.iterdir())
    print(json.dumps({"times": [4.0, 2.0, 3.0], "first_ms": float(len(others))}), flush=True)
"""


def test_all_are_ready_before_one_measures(tmp_path: Path) -> None:
    def command(kind: str, work: Workload) -> list[str]:
        return child(WELL_BEHAVED, str(tmp_path), kind)

    work = workload(ceiling_us=2.0, tokens=32)
    records, failures = run_baselines([(kind, work) for kind in KINDS], 60, command=command)
    assert not failures
    assert [record.baseline for record in records] == list(KINDS.values())
    assert {(record.us_per_token, record.ratio, record.tokens, record.context) for record in records} == {
        (3.0, 1.5, 32, 128)
    }
    # Each saw what all three had left behind when it came to its turn.
    assert {record.first_ms for record in records} == {3.0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import sys; print('no compiler here', file=sys.stderr); sys.exit(3)", "exit status 3: no compiler here"),
        ("raise SystemExit(4)", "exit status 4"),
        ("print('ready', flush=True); input(); raise MemoryError('too big')", "exit status 1: MemoryError: too big"),
        ("print('ready', flush=True); input()", "exit status 0"),
    ],
)
def test_a_failure_is_recorded_and_the_others_are_measured(tmp_path: Path, text: str, why: str) -> None:
    def command(kind: str, work: Workload) -> list[str]:
        return child(text) if kind == "compiled" else child(WELL_BEHAVED, str(tmp_path), kind)

    jobs = [(kind, workload()) for kind in ("compiled", "eager")]
    records, failures = run_baselines(jobs, 60, command=command)
    assert [record.baseline for record in records] == ["transformers eager"]
    ((failure),) = failures
    assert (failure.baseline, failure.context, failure.why) == ("transformers compiled", 128, why)


def test_one_that_takes_too_long_is_ended_and_recorded() -> None:
    begun: list[list[str]] = []

    def command(kind: str, work: Workload) -> list[str]:
        begun.append(child("import time; time.sleep(600)"))
        return begun[-1]

    records, failures = run_baselines([("eager", workload())], 0.2, command=command)
    assert not records and len(begun) == 1
    assert "longer than it may" in failures[0].why


def test_more_than_fit_at_once_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "AT_ONCE", 2)
    jobs = [("eager", workload(context=context)) for context in (1, 2, 3)]
    records, _ = run_baselines(
        jobs, 60, command=lambda kind, work: child(WELL_BEHAVED, str(tmp_path), str(work.context))
    )
    assert [(record.context, record.first_ms) for record in records] == [(1, 2.0), (2, 2.0), (3, 3.0)]


def test_the_command_is_this_module_with_the_workload() -> None:
    assert baselines._command("eager", workload(context=64, tokens=8))[1:] == [
        *("-m", "benchmarks.baselines", "eager", "llama-3.2-1b", "64", "8")
    ]


def test_a_turn_that_never_comes_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null", encoding="utf-8"))  # noqa: SIM115
    with pytest.raises(SystemExit, match="nobody waits"):
        baselines._wait_for_turn()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt2"])
def test_transformers_is_measured_when_it_is_its_turn(name: str) -> None:
    seen: list[str] = []
    config: dict[str, Any] = {**TINY_OF[name], "model_type": name, "vocab_size": 256}
    measured = measure(config, "eager", 8, 4, lambda: seen.append("turn"), device="cpu")
    assert seen == ["turn"]
    assert len(measured["times"]) == REPEATS and all(time > 0 for time in [*measured["times"], measured["first_ms"]])


@pytest.mark.parametrize("arguments", [["slow", "llama-3.2-1b", "1", "2"], ["eager", "gpt", "1", "2"], ["eager"]])
def test_a_wrong_argument_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        baselines.main(arguments)
    assert "usage: python -m benchmarks.baselines" in capsys.readouterr().err
