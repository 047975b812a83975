from __future__ import annotations

from typing import Any

import pytest

import jitmk.jit
from jitmk.cli.main import main
from jitmk.errors import CompileError
from jitmk.jit import CompiledKernel, KernelInfo

COMPILED: list[tuple[str, bool]] = []
"""Targets that were asked for, and whether for the megakernel (or for the kernels of prefill)."""


def fake_build(source: str, arch: Any) -> CompiledKernel:
    """A compiler that knows three targets and has one of them in its cache."""
    if arch.name == "sm_120a":
        raise CompileError("too little shared memory")
    assert "jitmk_decode" in source or "jitmk_unpack" in source
    COMPILED.append((arch.name, "jitmk_decode" in source))
    info = KernelInfo(registers=168, shared=64, spills=0 if arch.name == "sm_90a" else None, stack=0)
    return CompiledKernel(
        b"cubin", arch.name, info, "ab" * 32, arch.name == "sm_90a", None, "nvrtc", "12.9", (), "", 1.5
    )


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    COMPILED.clear()
    monkeypatch.setattr(jitmk.jit, "build", fake_build)


def test_the_table_shows_each_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--arch", "sm_90a", "--arch", "sm_100a", "--arch", "sm_90a", "--jobs", "2"]) == 0
    assert sorted(COMPILED) == [(arch, mega) for arch in ("sm_100a", "sm_90a") for mega in (False, True)]
    header, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["sm_90a", "sm_100a"]
    assert all(word in header for word in ("registers", "shared bytes", "spilled bytes", "seconds"))
    assert rows[0].split()[1:6] == ["nvrtc", "168", "232448", "0", "5"] and "cache" in rows[0]
    assert rows[1].split()[4] == "?" and "compiler" in rows[1]


def test_a_target_that_is_refused_does_not_keep_the_others_from_being_compiled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compile", "--arch", "sm_120a", "--arch", "sm_100a"]) == 1
    out, err = capsys.readouterr()
    assert "refused" in out.splitlines()[1] and "168" in out.splitlines()[2]
    assert "jitmk: error: sm_120a: too little shared memory\n" in err


def test_without_a_gpu_every_target_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jitmk.cuda.device import Device
    from jitmk.errors import DeviceError

    def no_gpu() -> Any:
        raise DeviceError("none")

    monkeypatch.setattr(Device, "open", no_gpu)
    assert main(["compile"]) == 1
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["sm_90a", "sm_100a", "sm_103a", "sm_120a"]


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--model", "/nowhere/at/all"]])
def test_what_cannot_be_compiled_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", *arguments]) == 1
    assert capsys.readouterr().err.startswith("jitmk: error: ")
