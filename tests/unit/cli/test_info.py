from __future__ import annotations

import pytest

import jitmk
from jitmk.cli.main import main
from jitmk.settings import VARIABLES


def test_it_shows_what_there_is_and_says_what_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JITMK_WAIT_DEADLINE_MS", "1234")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"jitmk {jitmk.__version__}, Python 3.")
    for part in ("torch ", "nvidia-cuda-nvrtc-cu12", "GPU ", "compiler ", "cache ", "backend ", "1234"):
        assert part in out
    assert all(variable.name in out for variable in VARIABLES)


def test_an_impossible_setting_does_not_hide_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JITMK_USE_NVRTC", "perhaps")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "none: JITMK_USE_NVRTC='perhaps' is not allowed" in out and "torch " in out
