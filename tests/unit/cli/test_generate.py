from __future__ import annotations

import io
import sys
from typing import Any

import pytest

import jitmk.api
from jitmk.cli.main import main
from tests.support.scripted import scripted_model


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces `load_model` by a scripted model; collects what it was asked for."""
    asked: list[dict[str, Any]] = []

    def load(name: str | None, **arguments: Any) -> Any:
        asked.append({"name": name, **arguments})
        return scripted_model(" was the word, and the word was")

    monkeypatch.setattr(jitmk.api, "load_model", load)
    return asked


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_text_goes_to_stdout_and_the_rest_to_stderr(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "In the beginning", "--max-new-tokens", "4", stream]) == 0
    out, err = capsys.readouterr()
    assert out == "In the beginning was the word,\n"
    lines = err.splitlines()
    assert lines[0] == "jitmk: backend: torch (a test wants it)"
    assert lines[1].startswith("jitmk: 4 prompt tokens in ") and "4 new tokens at " in lines[1]
    assert lines[1].endswith("finished by length, seed 0") and len(lines) == 2


@pytest.mark.usefixtures("loads")
def test_quiet_says_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--quiet", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("loads")
def test_every_sampling_flag_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.1 --seed 7 --max-new-tokens 9"
    assert main(["generate", "x", *flags.split(), "--stop", " word", "--stop", "zzz"]) == 0
    out, err = capsys.readouterr()
    assert out == "x was the\n" and "finished by stop, seed 7" in err
    for flag, message in (("--top-p 2 --temperature 1", "top_p=2"), ("--max-new-tokens 0", "max_new_tokens=0")):
        assert main(["generate", "x", *flag.split()]) == 1
        out, err = capsys.readouterr()
        assert out == "" and f"jitmk: error: {message}" in err


def test_model_flags_arrive(loads: list[dict[str, Any]]) -> None:
    flags = "--model a/b --revision v2 --cache-dir /c --local-files-only --max-seq-len 32 --backend torch --device cpu"
    assert main(["generate", "x", *flags.split(), "--max-new-tokens", "1"]) == 0
    assert loads == [
        {
            "name": "a/b",
            "revision": "v2",
            "cache_dir": "/c",
            "local_files_only": True,
            "max_seq_len": 32,
            "backend": "torch",
            "device": "cpu",
        }
    ]


def test_an_empty_prompt_is_refused_before_a_model_is_loaded(
    loads: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", ""]) == 1
    assert "the prompt is empty" in capsys.readouterr().err and loads == []


@pytest.mark.usefixtures("loads")
def test_a_prompt_from_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("In the beginning"))
    assert main(["generate", "-", "--max-new-tokens", "1", "--quiet"]) == 0
    assert capsys.readouterr().out == "In the beginning was\n"


@pytest.mark.usefixtures("loads")
def test_chat_needs_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Who was Moses?", "--chat"]) == 1
    assert "no chat template" in capsys.readouterr().err
