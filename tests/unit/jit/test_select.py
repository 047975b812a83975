"""Which compiler is taken, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from jitmk.arch import GpuArch
from jitmk.errors import CompilerNotFoundError
from jitmk.jit import nvcc, nvrtc
from jitmk.jit.nvcc import NvccCompiler
from jitmk.jit.nvrtc import NvrtcCompiler
from jitmk.jit.select import select_compiler
from jitmk.settings import Settings

SM_90A = GpuArch.parse("sm_90a")
VERSION_TEXT = """nvcc: NVIDIA (R) Cuda compiler driver
Cuda compilation tools, release {release}, V{release}.61
Build cuda_{release}.r{release}/compiler.1234_0
"""


@pytest.fixture(autouse=True)
def no_system_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what a test puts in PATH is there; gcc always is."""
    monkeypatch.setattr(nvcc, "_SYSTEM_NVCC", tmp_path / "nowhere" / "nvcc")
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    make_program(tmp_path / "bin" / "gcc", "exit 0")


def make_program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def make_nvcc(path: Path, release: str = "12.9") -> Path:
    return make_program(path, f"/bin/cat <<'END'\n{VERSION_TEXT.format(release=release)}END")


def settings(tmp_path: Path, use_nvrtc: bool | None = None, cuda_home: Path | None = None) -> Settings:
    return Settings(use_nvrtc=use_nvrtc, search_path=str(tmp_path / "bin"), cuda_home=cuda_home)


def test_nvcc_is_preferred_where_there_is_one(tmp_path: Path) -> None:
    path = make_nvcc(tmp_path / "bin" / "nvcc")
    compiler = select_compiler(SM_90A, settings(tmp_path))
    assert isinstance(compiler, NvccCompiler)
    assert (compiler.path, compiler.version) == (path, (12, 9))
    assert compiler.build == "V12.9.61 cuda_12.9.r12.9/compiler.1234_0"


def test_nvrtc_without_nvcc(tmp_path: Path) -> None:
    assert isinstance(select_compiler(SM_90A, settings(tmp_path)), NvrtcCompiler)


def test_nvrtc_when_forced(tmp_path: Path) -> None:
    make_nvcc(tmp_path / "bin" / "nvcc")
    assert isinstance(select_compiler(SM_90A, settings(tmp_path, use_nvrtc=True)), NvrtcCompiler)


def test_nvcc_when_forced_but_missing(tmp_path: Path) -> None:
    with pytest.raises(CompilerNotFoundError, match="NVCC was not found in PATH"):
        select_compiler(SM_90A, settings(tmp_path, use_nvrtc=False))


def test_nvcc_of_cuda_home(tmp_path: Path) -> None:
    path = make_nvcc(tmp_path / "cuda" / "bin" / "nvcc")
    compiler = select_compiler(SM_90A, settings(tmp_path, cuda_home=tmp_path / "cuda"))
    assert compiler.location == str(path)


def test_an_old_nvcc_is_passed_over_unless_forced(tmp_path: Path) -> None:
    make_nvcc(tmp_path / "bin" / "nvcc", release="12.4")
    sm_100a = GpuArch.parse("sm_100a")
    assert isinstance(select_compiler(SM_90A, settings(tmp_path)), NvccCompiler)
    assert isinstance(select_compiler(sm_100a, settings(tmp_path)), NvrtcCompiler)
    with pytest.raises(CompilerNotFoundError, match=r"nvcc 12\.4 .* needs CUDA 12\.8"):
        select_compiler(sm_100a, settings(tmp_path, use_nvrtc=False))


def test_nvcc_without_a_host_compiler(tmp_path: Path) -> None:
    make_nvcc(tmp_path / "bin" / "nvcc")
    (tmp_path / "bin" / "gcc").unlink()
    assert isinstance(select_compiler(SM_90A, settings(tmp_path)), NvrtcCompiler)
    with pytest.raises(CompilerNotFoundError, match="needs gcc"):
        select_compiler(SM_90A, settings(tmp_path, use_nvrtc=False))


@pytest.mark.parametrize("body", ["exit 1", "echo hello", "exec /no/such/program"])
def test_a_program_that_is_no_nvcc(tmp_path: Path, body: str) -> None:
    path = make_program(tmp_path / "odd", body)
    odd = Settings(nvcc=path, search_path=str(tmp_path / "bin"))
    with pytest.raises(CompilerNotFoundError, match="check JITMK_NVCC"):
        select_compiler(SM_90A, odd)


def test_a_named_nvrtc_that_is_none(tmp_path: Path) -> None:
    text = tmp_path / "libnvrtc.so.12"
    text.write_text("no library")
    with pytest.raises(CompilerNotFoundError, match=r"libnvrtc\.so\.12 cannot be loaded as NVRTC"):
        select_compiler(SM_90A, Settings(use_nvrtc=True, nvrtc=text))


def test_a_library_without_the_calls_is_no_nvrtc(tmp_path: Path) -> None:
    import _ctypes

    with pytest.raises(CompilerNotFoundError, match="nvrtcVersion"):
        NvrtcCompiler.load(_ctypes.__file__)


def test_a_name_that_contradicts_the_version_is_refused(tmp_path: Path) -> None:
    real = NvrtcCompiler.find(Settings())
    wrong = tmp_path / "libnvrtc.so.11"
    wrong.symlink_to(real.location)
    for builtins in Path(real.location).parent.glob("libnvrtc-builtins.so*"):
        (tmp_path / builtins.name).symlink_to(builtins)
    with pytest.raises(CompilerNotFoundError, match="which its name contradicts"):
        NvrtcCompiler.load(str(wrong))


def test_nvrtc_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_candidates", lambda settings: iter([str(tmp_path / "libnvrtc.so.12")]))
    with pytest.raises(CompilerNotFoundError, match="pip install nvidia-cuda-nvrtc-cu12"):
        select_compiler(SM_90A, settings(tmp_path))


def test_the_wheel_of_cuda_12_comes_first() -> None:
    locations = list(nvrtc._candidates(Settings()))
    assert locations[0].endswith("cuda_nvrtc/lib/libnvrtc.so.12")
    assert locations[-3:] == ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"]
