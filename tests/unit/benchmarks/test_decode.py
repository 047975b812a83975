"""The decode benchmark around what is measured: what is written, printed and returned. Needs no GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import decode
from benchmarks.baselines import KINDS
from benchmarks.measure import CHECK_TOKENS, LaunchTimes
from benchmarks.records import (
    BenchmarkError,
    Comparison,
    Failure,
    Record,
    Workload,
    default_path,
    read_records,
    write_results,
)
from benchmarks.shapes import FAMILY_MODELS, LLAMAS
from jitmk.errors import DeviceError
from tests.unit.benchmarks.samples import comparison, record, workload


class FakeLive:
    """Stands in for `measure.Live`: generates in no time, 1.1 times the ceiling, and is wrong where it is told to."""

    unsound: tuple[str, ...] = ()
    opened: tuple[tuple[str, int], ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self._checked = False

    @classmethod
    def open(cls, gpu: object, name: str, max_seq_len: int) -> FakeLive:
        FakeLive.opened += ((name, max_seq_len),)
        return cls(name)

    def check(self, contexts: Sequence[int]) -> list[Comparison]:
        if self.name in self.unsound:
            raise BenchmarkError("it was not measured, for it does not compute what it should")
        self._checked = True
        return [comparison(model=self.name) for _ in contexts]

    def generate(self, context: int, tokens: int) -> tuple[float, float]:
        assert self._checked, "timed before it was checked"
        return 550.0, 30.0

    def host_launch_us(self, context: int) -> LaunchTimes:
        return LaunchTimes(idle=9.25, queued=7.5)

    def __enter__(self) -> FakeLive:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def fake_baselines(jobs: Sequence[tuple[str, Workload]], timeout: float) -> tuple[list[Record], list[Failure]]:
    records = [Record.of(work, KINDS[kind], [1500.0]) for kind, work in jobs if kind != "compiled"]
    failures = [Failure(work.model, KINDS[kind], "no compiler", 128) for kind, work in jobs if kind == "compiled"]
    return records, failures


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def workloads(gpu: object, name: str, runs: Sequence[tuple[int, int]]) -> list[Workload]:
        return [workload(name, context, tokens=tokens) for context, tokens in runs]

    monkeypatch.setattr(FakeLive, "unsound", ())
    monkeypatch.setattr(FakeLive, "opened", ())
    monkeypatch.setattr(decode, "Live", FakeLive)
    monkeypatch.setattr(decode, "open_gpu", lambda: SimpleNamespace(name="NVIDIA H200", index=0))
    monkeypatch.setattr(decode, "describe", lambda gpu: {"device": "NVIDIA H200", "commit": "abc"})
    monkeypatch.setattr(decode, "announce", lambda gpu, environment: "a GPU")
    monkeypatch.setattr(decode, "workloads", workloads)
    monkeypatch.setattr(decode, "clocks_under_load", lambda index, work: work() and {"clocks.sm": "1980 MHz"})
    monkeypatch.setattr(decode, "run_baselines", fake_baselines)
    monkeypatch.setattr("benchmarks.records.RESULTS", tmp_path / "results")


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and the file of results, at its default place."""
    status = decode.main(arguments)
    path = default_path("decode", "NVIDIA H200")
    return status, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def test_one_command_measures_everything(capsys: pytest.CaptureFixture[str]) -> None:
    status, content = run()
    assert status == 0
    records = content["records"]
    mine = [(found["model"], found["context"]) for found in records if found["baseline"] == "jitmk"]
    assert mine == [(model, context) for model in LLAMAS for context in (128, 4096, 8192)]
    costs = {(found["host_launch_us"], found["queued_launch_us"]) for found in records if found["baseline"] == "jitmk"}
    assert costs == {(9.25, 7.5)}
    others = {(found["model"], found["baseline"], found["tokens"]) for found in records if found["baseline"] != "jitmk"}
    assert others == {(model, KINDS[kind], 32) for model in LLAMAS for kind in ("eager", "cuda-graphs")}
    assert content["environment"]["clocks_under_load"] == {name: {"clocks.sm": "1980 MHz"} for name in LLAMAS}
    assert len(content["checks"]) == 3 * len(LLAMAS) and all(check["holds"] for check in content["checks"])
    # A failed baseline is recorded and shown, but is not jitmk's failure.
    assert [failure["baseline"] for failure in content["failures"]] == ["transformers compiled"] * len(LLAMAS)
    assert set(FakeLive.opened) == {(model, 8192 + 512) for model in LLAMAS}
    shown = capsys.readouterr().out
    assert {line.split()[-1] for line in shown.splitlines() if " jitmk " in line} == {"7.5"}
    assert "FAILED: transformers compiled, llama-3.1-8b at 128: no compiler" in shown
    assert "decode-h200.json" in shown and "plot" in shown


def test_families_have_a_file_of_their_own_and_stand_beside_llamas(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--family-models")[0] == 0
    assert "no Llamas to compare with" in capsys.readouterr().out
    write_results(default_path("decode", "NVIDIA H200"), {}, [record(520.0, model="llama-3.1-8b")], [], [])
    assert run("--family-models")[0] == 0
    path = default_path("families", "NVIDIA H200")
    found = json.loads(path.read_text(encoding="utf-8"))["records"]
    assert [(record["model"], record["context"], record["baseline"]) for record in found] == [
        (model, 128, "jitmk") for model in FAMILY_MODELS
    ]
    assert ("gpt2", 128 + 512) in FakeLive.opened
    missed = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("MISSED")]
    assert [line[0] for line in missed] == ["qwen2.5-7b", "qwen3-8b", "mistral-7b"]
    assert missed[0][2:] == ["1.100", "llama-3.1-8b", "1.040", "+5.8", "%", "MISSED"]


def test_a_context_that_does_not_fit_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    status, content = run("--models", "gpt2", "--baselines", "none")
    assert status == 0 and [found["context"] for found in content["records"]] == [128]
    assert "gpt2 at 4096 is left out: it has 1024 positions, 4096 + 512 do not fit" in capsys.readouterr().err
    assert run("--models", "gpt2", "--contexts", "4096", "--baselines", "none")[0] == 1
    assert "FAILED: jitmk, gpt2: no context is left for gpt2" in capsys.readouterr().out


def test_references_are_rows_marked_as_measured_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    run("--models", "llama-3.1-8b")
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "vLLM" in line and " 8192 " in line]
    assert row.split()[0] == "llama-3.1-8b" and "5131.0" in row and " * " in row
    assert "* measured earlier on another H200" in lines
    run("--models", "smollm2-360m")
    assert "measured earlier" not in capsys.readouterr().out


def test_a_model_that_is_not_sound_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeLive, "unsound", ("llama-3.2-3b",))
    status, content = run("--models", "llama-3.2-1b,llama-3.2-3b,llama-3.1-8b", "--baselines", "none")
    assert status == 1
    assert {found["model"] for found in content["records"]} == {"llama-3.2-1b", "llama-3.1-8b"}
    ((failure),) = content["failures"]
    assert failure["model"] == "llama-3.2-3b" and failure["baseline"] == "jitmk"
    assert "FAILED: jitmk, llama-3.2-3b: it was not measured" in capsys.readouterr().out


def test_a_short_run_still_has_room_for_the_check() -> None:
    run("--models", "llama-3.2-1b", "--contexts", "16", "--tokens", "2", "--baselines", "none")
    assert FakeLive.opened == (("llama-3.2-1b", 16 + CHECK_TOKENS),)


def test_results_go_where_they_are_told_to(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    assert run("--models", "llama-3.2-1b", "--json", str(path)) == (0, {})
    assert len(read_records(path)) == 5


@pytest.mark.parametrize(
    ("before", "arguments", "status"),
    [
        (550.0, ["--compare", "--fail-on-regression"], 0),
        (530.0, ["--compare", "--fail-on-regression"], 1),
        (530.0, ["--fail-on-regression"], 1),
        (530.0, ["--compare", "--fail-on-regression", "5"], 0),
        (530.0, ["--compare"], 0),
    ],
)
def test_the_committed_results_are_compared_with(
    before: float, arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = default_path("decode", "NVIDIA H200")
    write_results(path, {}, [record(before)], [], [])
    # The new results replace the old ones on the way.
    assert run("--models", "llama-3.2-1b", "--contexts", "128", *arguments)[0] == status
    assert f"{before / 500:.3f}" in capsys.readouterr().out


def test_a_file_to_compare_with_can_be_named(tmp_path: Path) -> None:
    write_results(tmp_path / "old.json", {}, [record(500.0)], [], [])
    arguments = ("--models", "llama-3.2-1b", "--compare", str(tmp_path / "old.json"), "--fail-on-regression")
    assert run(*arguments)[0] == 1


def test_without_committed_results_a_regression_check_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--models", "llama-3.2-1b", "--compare")[0] == 0
    assert "there is nothing to compare" in capsys.readouterr().out
    default_path("decode", "NVIDIA H200").unlink()
    assert run("--models", "llama-3.2-1b", "--fail-on-regression") == (1, {})
    assert "there are no results to compare with" in capsys.readouterr().err


def test_a_file_that_is_not_there_costs_no_gpu_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--compare", "nowhere.json") == (1, {})
    assert not FakeLive.opened and "nowhere.json cannot be read" in capsys.readouterr().err


def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_gpu() -> None:
        raise DeviceError("there is no NVIDIA driver")

    monkeypatch.setattr(decode, "open_gpu", no_gpu)
    assert run() == (1, {})
    assert capsys.readouterr().err == "benchmarks.decode: error: there is no NVIDIA driver\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "gpt-2"], "'gpt-2' is not one of llama-3.2-1b"),
        (["--contexts", "128,0"], "'0' is not a whole number of at least 1"),
        (["--tokens", "1"], "'1' is not a whole number of at least 2"),
        (["--repeats", "0"], "at least 1"),
        (["--baselines", "eager,fast"], "'fast' is not one of eager, compiled, cuda-graphs, or none"),
        (["--baseline-timeout", "-1"], "'-1' is not a number of at least 0"),
        (["--fail-on-regression", "x"], "'x' is not a number"),
        (["--models", "gpt2", "--family-models"], "not allowed with argument --models"),
        (["--no-check"], "unrecognized arguments: --no-check"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        decode.main(arguments)
    assert message in capsys.readouterr().err
