from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.compare import DEFAULT_PERCENT, changes, committed_records, main, report
from benchmarks.records import Record, write_results
from tests.unit.benchmarks.samples import record


def write(path: Path, records: Sequence[Record]) -> str:
    write_results(path, {}, records, [], [])
    return str(path)


@pytest.fixture
def old(tmp_path: Path) -> str:
    return write(tmp_path / "old.json", [record(550.0), record(9000.0, "transformers eager"), record(context=4096)])


@pytest.mark.parametrize(
    ("now", "arguments", "status"),
    [
        # The ceiling of the new run is 500 as well: ratios change as times do.
        (record(550.0), ["--fail-on-regression"], 0),
        (record(566.0), ["--fail-on-regression"], 0),
        (record(567.0), ["--fail-on-regression"], 1),
        (record(567.0), ["--fail-on-regression", "4"], 0),
        (record(551.0), ["--fail-on-regression", "0"], 1),
        (record(700.0), [], 0),
        # A slower machine, and no worse beside its ceiling; then a faster one that hides a regression.
        (record(605.0, ceiling_us=550.0), ["--fail-on-regression"], 0),
        (record(520.0, ceiling_us=450.0), ["--fail-on-regression"], 1),
        (record(400.0), ["--fail-on-regression", "0"], 0),
    ],
)
def test_a_worse_ratio_is_a_regression(
    tmp_path: Path, old: str, now: Record, arguments: list[str], status: int
) -> None:
    assert main([old, write(tmp_path / "new.json", [now]), *arguments]) == status


def test_baselines_are_shown_but_do_not_regress(tmp_path: Path, old: str, capsys: pytest.CaptureFixture[str]) -> None:
    new = write(tmp_path / "new.json", [record(550.0), record(20000.0, "transformers eager")])
    assert main([old, new, "--fail-on-regression"]) == 0
    shown = capsys.readouterr().out
    assert "+122.2 %" in shown and "REGRESSION" not in shown
    assert "not measured this time: jitmk, llama-3.2-1b at 4096" in shown
    assert f"worse by more than {DEFAULT_PERCENT:g} %" in shown


def test_the_record_that_regressed_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = [record(550.0), record(600.0, context=4096)], [record(550.0), record(700.0, context=4096)]
    assert report(before, after, 3.0) == 1
    marked = [line for line in capsys.readouterr().out.splitlines() if "REGRESSION" in line]
    assert len(marked) == 1 and "4096" in marked[0] and "1.200" in marked[0] and "1.400" in marked[0]


def test_only_the_same_measurement_is_compared() -> None:
    assert not changes([record(model="llama-3.2-1b")], [record(model="llama-3.2-3b")])


def test_a_check_that_compares_nothing_does_not_pass(tmp_path: Path, old: str) -> None:
    new = write(tmp_path / "new.json", [record(model="llama-3.1-8b"), record(9000.0, "transformers eager")])
    assert main([old, new]) == 0
    assert main([old, new, "--fail-on-regression"]) == 1


def test_a_missing_file_is_an_error(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([old, "nowhere.json"]) == 1
    assert "nowhere.json cannot be read" in capsys.readouterr().err


def test_a_percentage_is_a_number(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([old, old, "--fail-on-regression", "much"])
    assert "'much' is not a number of at least 0" in capsys.readouterr().err


def test_committed_results_are_those_of_the_last_commit(tmp_path: Path) -> None:
    path = tmp_path / "decode-gpu.json"
    assert committed_records(path) is None
    write(path, [record(550.0)])
    assert committed_records(path) == [record(550.0)]
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", path.name), ("commit", "-q", "-m", "results")):
        subprocess.run([*git, *command], check=True, capture_output=True)
    write(path, [record(600.0)])
    assert committed_records(path) == [record(550.0)]
