from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from benchmarks import decode, gpu_check, numerics, prefill, sampling, startup
from benchmarks.gpu_check import Check, checks, main

PARSERS = {
    "benchmarks.decode": decode._parse,
    "benchmarks.numerics": numerics._parse,
    "benchmarks.sampling": sampling._parse,
    "benchmarks.prefill": prefill._parse,
    "benchmarks.startup": startup._parse,
}


def test_every_check_calls_a_module_that_is_there_with_arguments_that_it_takes(tmp_path: Path) -> None:
    known = checks(tmp_path, 128)
    assert [check.name for check in known] == [
        *("tests", "models", "memcheck", "memcheck-fused", "memcheck-unfused"),
        *("racecheck", "racecheck-fused", "racecheck-unfused", "numerics"),
        *("decode", "sampling", "prefill", "startup"),
    ]
    for check in known:
        module = check.command[check.command.index("-m") + 1]
        assert importlib.util.find_spec(module) is not None, module
        if module in PARSERS:
            parsed = PARSERS[module](check.command[check.command.index(module) + 1 :])
            assert parsed.json.parent == tmp_path


def test_only_what_is_asked_for_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commands(out: Path, tokens: int) -> tuple[Check, ...]:
        fail = (sys.executable, "-c", "print('seen'); raise SystemExit(7)")
        return (
            Check("tests", (sys.executable, "-c", ""), 60),
            Check("decode", fail, 60),
            Check("memcheck", ("no-x",), 1),
        )

    monkeypatch.setattr(gpu_check, "checks", commands)
    assert main(["--out", str(tmp_path), "--only", "tests"]) == 0
    assert main(["--out", str(tmp_path)]) == 1
    outcomes = json.loads((tmp_path / "checks.json").read_text(encoding="utf-8"))
    assert [(outcome["name"], outcome["result"]) for outcome in outcomes] == [
        ("tests", "passed"),
        ("decode", "failed with status 7"),
        ("memcheck", "no-x is not installed"),
    ]
    assert (tmp_path / "decode.log").read_text(encoding="utf-8") == "seen\n"


@pytest.mark.parametrize("arguments", [["--only", "speed"], ["--tokens", "1"]])
def test_a_wrong_argument_is_refused(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), *arguments])
    assert "is not" in capsys.readouterr().err
