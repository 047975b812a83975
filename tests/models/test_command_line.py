"""The command line as a user runs it: in processes of its own, with the bundled model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jitmk

ROOT = Path(jitmk.__file__).parent.parent


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "jitmk.cli.main", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    result = run(tmp_path, "generate", "In the beginning", "--max-new-tokens", "24", "--seed", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("In the beginning ") and len(result.stdout.split()) > 12
    assert "jitmk: backend: " in result.stderr and "24 new tokens" in result.stderr
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr
    again = run(tmp_path, "generate", "In the beginning", "--max-new-tokens", "24", "--seed", "1")
    assert again.stdout == result.stdout


def test_a_prompt_past_the_context(tmp_path: Path) -> None:
    result = run(tmp_path, "generate", "word " * 2000, "--backend", "reference")
    assert result.returncode == 1 and result.stdout == ""
    assert "jitmk: error: the prompt has" in result.stderr and "the context 1024" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    command = f"{sys.executable} -m jitmk.cli.main generate And --backend reference --stream | head -c 5"
    result = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(result.stdout) == 5
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
