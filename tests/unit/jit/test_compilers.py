"""NVRTC and NVCC compile real kernels for every target, and say what is wrong with bad ones."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from jitmk.arch import GpuArch
from jitmk.errors import CompileError, CompilerNotFoundError
from jitmk.jit import nvcc
from jitmk.jit.compiler import FIRST_CUDA, Compiler
from jitmk.jit.nvcc import NvccCompiler
from jitmk.jit.nvrtc import NvrtcCompiler
from jitmk.settings import get_settings
from tests.unit.jit.sources import BROKEN_KERNEL, KERNEL, SPILLING_KERNEL

ELF = b"\x7fELF"


@cache
def find(name: str) -> Compiler | str:
    """The compiler, or why it is not here. NVRTC comes with jitmk's own dependencies, so it always is."""
    if name == "nvrtc":
        return NvrtcCompiler.find(get_settings())
    try:
        return NvccCompiler.find(get_settings())
    except CompilerNotFoundError as error:
        return str(error)


@pytest.fixture(params=["nvrtc", "nvcc"])
def compiler(request: pytest.FixtureRequest) -> Compiler:
    found = find(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.mark.parametrize("arch", GpuArch.supported())
def test_a_kernel_compiles_for_every_target(compiler: Compiler, arch: str) -> None:
    result = compiler.compile(KERNEL, GpuArch.parse(arch))
    assert result.cubin.startswith(ELF)
    assert b"copy_through_shared" in result.cubin
    assert arch in result.log
    assert result.registers is not None and 0 < result.registers < 64
    # The array and the barrier; some targets keep a kilobyte of their own.
    assert result.shared is not None and result.shared % 1024 == 8
    assert result.spills == 0
    assert result.seconds > 0
    assert f"--gpu-architecture={arch}" in result.command


def test_spills_are_reported(compiler: Compiler) -> None:
    result = compiler.compile(SPILLING_KERNEL, GpuArch.parse("sm_90a"))
    assert result.spills is not None and result.spills > 0


def test_options_take_effect(compiler: Compiler) -> None:
    source = 'extern "C" __global__ void k(int* to) { to[0] = VALUE; }'
    arch = GpuArch.parse("sm_90a")
    with pytest.raises(CompileError, match="VALUE"):
        compiler.compile(source, arch)
    assert compiler.compile(source, arch, ["-DVALUE=3"]).cubin != compiler.compile(source, arch, ["-DVALUE=4"]).cubin


def test_an_error_carries_log_and_command(compiler: Compiler) -> None:
    with pytest.raises(CompileError, match="no_such_name") as caught:
        compiler.compile(BROKEN_KERNEL, GpuArch.parse("sm_100a"))
    assert "no_such_name" in caught.value.log
    assert "kernel.cu(2)" in caught.value.log
    assert "--gpu-architecture=sm_100a" in caught.value.command
    assert "could not compile the kernel for sm_100a" in str(caught.value)


def test_line_directives_point_at_the_real_file(compiler: Compiler) -> None:
    source = '#line 70 "jitmk/vm/ring.cuh"\n' + BROKEN_KERNEL
    with pytest.raises(CompileError, match=r"jitmk/vm/ring\.cuh.71.*no_such_name"):
        compiler.compile(source, GpuArch.parse("sm_90a"))


def test_an_unknown_option_is_an_error(compiler: Compiler) -> None:
    with pytest.raises(CompileError, match="no-such-option"):
        compiler.compile(KERNEL, GpuArch.parse("sm_90a"), ["--no-such-option"])


@pytest.mark.parametrize(
    "option", ["-I/usr/include", "--include-path=/x", "-arch=sm_80", "--gpu-code=sm_80", "-include"]
)
def test_targets_and_includes_are_not_options(compiler: Compiler, option: str) -> None:
    with pytest.raises(CompileError, match="is not allowed"):
        compiler.compile(KERNEL, GpuArch.parse("sm_90a"), [option])


def test_the_build_says_more_than_the_version(compiler: Compiler) -> None:
    assert compiler.version >= (12, 0)
    assert compiler.build.startswith(f"V{compiler.version[0]}.{compiler.version[1]}.")
    assert len(compiler.build.split()) == 2


def test_a_too_old_compiler_says_what_is_needed(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIRST_CUDA, "sm_103a", (99, 1))
    with pytest.raises(CompilerNotFoundError, match=r"cannot compile for sm_103a, which needs CUDA 99\.1"):
        compiler.compile(KERNEL, GpuArch.parse("sm_103a"))


def test_nvcc_leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find("nvcc")
    if isinstance(found, str):
        pytest.skip(found)
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    found.compile(KERNEL, GpuArch.parse("sm_90a"))
    with pytest.raises(CompileError):
        found.compile(BROKEN_KERNEL, GpuArch.parse("sm_90a"))
    assert list(folder.iterdir()) == []


def test_an_nvcc_that_hangs_is_stopped_with_its_children(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    folder = tmp_path_factory.mktemp("hanging")
    script = folder / "nvcc"
    script.write_text(f"#!/bin/sh\n{sleep} 600 &\necho $! > {folder}/child\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(nvcc, "_COMPILE_SECONDS", 1.0)
    with pytest.raises(CompileError, match="did not finish within 1 s"):
        NvccCompiler(script, (99, 0), "a build").compile(KERNEL, GpuArch.parse("sm_90a"))
    assert state_of(int((folder / "child").read_text())) in ("gone", "Z")


def state_of(process: int) -> str:
    """The state letter of a process, ``"Z"`` for one that has ended but was not waited for, or ``"gone"``."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return "gone"
