from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import jitmk
from jitmk.cli import generate, main

ROOT = Path(jitmk.__file__).parent.parent


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["--version"], ["compile", "--arch", "sm_70"]]
)
def test_help_and_usage_errors_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from jitmk.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'safetensors', 'cuda'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("generate", "compile", "tune", "diff", "info"):
        with pytest.raises(SystemExit) as left:
            main.main([command, "--help"])
        assert left.value.code == 0
        assert f"jitmk {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["frobnicate"], ["generate"], ["generate", "x", "--backend", "gpu"], ["generate", "x", "--top-k", "many"]],
)
def test_a_usage_error_is_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main.main(arguments)
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("jitmk: error: ") and told.count("\n") == 1


def test_an_error_of_jitmk_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["generate", "x", "--model", "/nowhere/at/all"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == "jitmk: error: there is no folder /nowhere/at/all\n"


def test_in_debug_mode_an_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMK_DEBUG", "1")
    with pytest.raises(jitmk.CheckpointError):
        main.main(["generate", "x", "--model", "/nowhere/at/all"])


def test_an_impossible_setting_is_told_like_any_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JITMK_DEBUG", "maybe")
    assert main.main(["generate", "x"]) == 1
    assert capsys.readouterr().err.startswith("jitmk: error: JITMK_DEBUG='maybe' is not allowed")


def run_instead(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    monkeypatch.setattr(generate, "run", do)


def test_warnings_are_told_as_such_and_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def do(args: Any) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the disk is full", stacklevel=1)
            warnings.warn("the disk is full", stacklevel=2)
        return 0

    run_instead(monkeypatch, do)
    assert main.main(["generate", "x"]) == 0
    assert capsys.readouterr().err == "jitmk: warning: the disk is full\n"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1)])
def test_interruptions_are_quiet(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def do(args: Any) -> int:
        raise error

    run_instead(monkeypatch, do)
    stdout = sys.stdout
    assert main.main(["generate", "x"]) == status
    monkeypatch.setattr(sys, "stdout", stdout)
    assert capsys.readouterr().err == ""
