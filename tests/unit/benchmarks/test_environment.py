from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.environment import clocks_under_load, command_output


def fake_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_clocks_are_asked_for_while_the_work_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Answers only once the work has been done three times.
    waits = f'while [ ! -e {tmp_path}/3 ]; do sleep 0.01; done; echo "$1 $2" > {tmp_path}/asked'
    fake_nvidia_smi(tmp_path, f"{waits}; echo '1980 MHz, 3201 MHz, 512.20 W, 48'", monkeypatch)
    done: list[int] = []

    def work() -> None:
        done.append(1)
        (tmp_path / str(len(done))).touch()

    assert clocks_under_load(2, work) == {
        "clocks.sm": "1980 MHz",
        "clocks.mem": "3201 MHz",
        "power.draw": "512.20 W",
        "temperature.gpu": "48",
    }
    assert len(done) >= 3
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert "--id=2" in asked and "clocks.sm" in asked


def test_a_query_that_fails_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, "echo '1980 MHz'; exit 9", monkeypatch)
    assert clocks_under_load(0, lambda: None) is None


def test_a_query_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, "exec sleep 600", monkeypatch)
    monkeypatch.setattr("benchmarks.environment._LONGEST_QUERY", 0.1)
    assert clocks_under_load(0, lambda: None) is None


def test_without_nvidia_smi_there_are_no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert clocks_under_load(0, lambda: None) is None


def test_a_command_that_fails_or_is_missing_has_no_output() -> None:
    assert command_output("echo", " text ") == "text"
    assert command_output("false") is None
    assert command_output("no-such-command-anywhere") is None
