"""jitmk-cache: what it prints, what it removes, and its exit status."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jitmk.arch import GpuArch
from jitmk.cli.cache import format_bytes, main
from jitmk.jit.build import CompiledKernel, build
from tests.unit.jit.sources import PretendCompiler


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("JITMK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kernels(root: Path, tmp_path: Path) -> list[CompiledKernel]:
    compiler = PretendCompiler(tmp_path / "notes")
    return [build("source", GpuArch.parse(arch), compiler=compiler) for arch in ("sm_90a", "sm_100a")]


def path_of(kernel: CompiledKernel) -> Path:
    assert kernel.path is not None
    return kernel.path


def test_dir_does_not_create_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dir"]) == 0
    assert capsys.readouterr().out == f"{root}\n"
    assert not root.exists()


@pytest.mark.parametrize("command", ["list", "stats", "verify", "clear"])
def test_an_empty_cache_is_no_error(root: Path, command: str) -> None:
    assert main([command]) == 0
    assert not root.exists()


def test_list(kernels: list[CompiledKernel], capsys: pytest.CaptureFixture[str]) -> None:
    (path_of(kernels[1]) / "entry.json").write_text("garbage")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["KERNEL", "ARCH", "COMPILER"]
    (row,) = [line.split() for line in out.splitlines() if kernels[0].key[:16] in line]
    assert row[:7] == [kernels[0].key[:16], "sm_90a", "pretend", "build", "32", "1024", "0"]
    (row,) = [line.split() for line in out.splitlines() if kernels[1].key[:16] in line]
    assert row[1] == "damaged"


def test_stats(kernels: list[CompiledKernel], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats"]) == 0
    out = capsys.readouterr().out
    assert str(root) in out
    assert "kernels      2 (" in out
    assert "2.0 GiB" in out


def test_verify(kernels: list[CompiledKernel], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    assert "2 sound, 0 damaged" in capsys.readouterr().out
    cubin = path_of(kernels[0]) / "kernel.cubin"
    cubin.write_bytes(cubin.read_bytes()[:-1])
    assert main(["verify"]) == 1
    out = capsys.readouterr().out
    assert f"{kernels[0].key[:16]}  damaged: kernel.cubin has" in out
    assert "1 sound, 1 damaged" in out
    assert not path_of(kernels[0]).exists()
    assert main(["verify"]) == 0


def test_clear(kernels: list[CompiledKernel], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clear"]) == 0
    assert "removed 2 (" in capsys.readouterr().out
    assert not root.exists()


def test_clear_older_than(kernels: list[CompiledKernel], capsys: pytest.CaptureFixture[str]) -> None:
    then = time.time() - 3 * 86400
    os.utime(path_of(kernels[0]) / "entry.json", (then, then))
    assert main(["clear", "--older-than", "2.5"]) == 0
    assert "removed 1 (" in capsys.readouterr().out
    assert [path_of(kernel).exists() for kernel in kernels] == [False, True]


def test_clear_says_what_it_left(kernels: list[CompiledKernel], capsys: pytest.CaptureFixture[str]) -> None:
    (path_of(kernels[0]) / "thesis.tex").write_text("keep")
    assert main(["clear"]) == 1
    assert f"left {path_of(kernels[0])}" in capsys.readouterr().err
    assert (path_of(kernels[0]) / "thesis.tex").read_text() == "keep"


@pytest.mark.parametrize("days", ["-1", "soon", "nan", "inf"])
def test_bad_days(root: Path, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["clear", f"--older-than={days}"])
    assert caught.value.code == 2
    assert "is no number of days" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["burn"], ["list", "--older-than", "3"]])
def test_bad_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_a_bad_setting_is_a_clear_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JITMK_CACHE_MAX_BYTES", "lots")
    assert main(["stats"]) == 2
    assert "jitmk-cache: error: JITMK_CACHE_MAX_BYTES='lots'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["list", "stats", "verify", "clear"])
def test_a_cache_that_others_may_write_to_is_an_error(
    kernels: list[CompiledKernel], root: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root.chmod(0o777)
    assert main([command]) == 2
    assert "chmod go-w" in capsys.readouterr().err
    assert path_of(kernels[0]).exists()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"), (2**42, "4.0 TiB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text
