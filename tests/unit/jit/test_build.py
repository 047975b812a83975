"""build: from source to cubin, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import jitmk
from jitmk.arch import GpuArch
from jitmk.errors import CompileError
from jitmk.jit import folder as folders
from jitmk.jit.build import CompiledKernel, build
from jitmk.jit.cache import KernelCache
from jitmk.settings import Settings
from tests.unit.jit.sources import BROKEN_KERNEL, KERNEL, PretendCompiler

SM_90A = GpuArch.parse("sm_90a")


def test_compiled_once_then_read(cache: KernelCache, pretend: PretendCompiler) -> None:
    first = build("source", SM_90A, ["-x"], settings=Settings(), compiler=pretend, cache=cache)
    second = build("source", SM_90A, ["-x"], settings=Settings(), compiler=pretend, cache=cache)
    assert pretend.compiles == 1
    assert not first.from_cache
    assert second.from_cache
    fields = set(CompiledKernel.__dataclass_fields__) - {"from_cache"}
    assert {name: getattr(first, name) for name in fields} == {name: getattr(second, name) for name in fields}
    assert second.info.registers == 32
    assert "-x" in second.command


def test_what_differs_is_compiled_apart(cache: KernelCache, pretend: PretendCompiler) -> None:
    build("source", SM_90A, settings=Settings(), compiler=pretend, cache=cache)
    build("other", SM_90A, settings=Settings(), compiler=pretend, cache=cache)
    build("source", GpuArch.parse("sm_100a"), settings=Settings(), compiler=pretend, cache=cache)
    build("source", SM_90A, ["-x"], settings=Settings(), compiler=pretend, cache=cache)
    build("source", SM_90A, settings=Settings(debug=True), compiler=pretend, cache=cache)
    assert pretend.compiles == 5


def test_a_refused_source_is_saved(cache: KernelCache, pretend: PretendCompiler) -> None:
    for _ in range(2):
        with pytest.raises(CompileError) as caught:
            build("no_such_name", SM_90A, settings=Settings(), compiler=pretend, cache=cache)
        error = caught.value
        assert error.source_path is not None
        assert error.source_path.read_text() == "no_such_name"
        assert error.source_path.parent.parent == cache.failed
        assert (error.source_path.parent / "compile.log").read_text() == error.log == "line 2: no_such_name"
        assert str(error.source_path) in str(error)
        assert "--gpu-architecture=sm_90a" in error.command


def test_a_refused_source_is_saved_elsewhere_when_the_cache_cannot(
    cache: KernelCache, pretend: PretendCompiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(folders, "write_file", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CompileError) as caught:
        build("no_such_name", SM_90A, settings=Settings(), compiler=pretend, cache=cache)
    path = caught.value.source_path
    assert path is not None
    assert path.parent.parent == tmp_path
    assert path.read_text() == "no_such_name"


def test_commands_and_reports_are_printed_when_asked_for(
    cache: KernelCache, pretend: PretendCompiler, capfd: pytest.CaptureFixture[str]
) -> None:
    build("quiet", SM_90A, settings=Settings(), compiler=pretend, cache=cache)
    assert capfd.readouterr() == ("", "")
    build("one", SM_90A, settings=Settings(print_compiler_command=True), compiler=pretend, cache=cache)
    out, err = capfd.readouterr()
    assert out == ""
    assert "jitmk: nowhere --gpu-architecture=sm_90a --std=c++17 --ptxas-options=-v" in err
    build("two", SM_90A, settings=Settings(ptxas_verbose=True), compiler=pretend, cache=cache)
    err = capfd.readouterr().err
    assert "32 registers, 1024 bytes shared, 0 bytes spilled" in err
    assert "a log" in err


def test_the_real_compiler_through_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JITMK_USE_NVRTC", "1")
    monkeypatch.setenv("JITMK_CACHE_DIR", str(tmp_path / "cache"))
    first = build(KERNEL, SM_90A)
    assert first.compiler == "nvrtc"
    assert first.path is not None and first.path.parent == tmp_path / "cache" / "kernels"
    assert build(KERNEL, SM_90A).from_cache
    with pytest.raises(CompileError, match="no_such_name"):
        build(BROKEN_KERNEL, SM_90A)


CHILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from time import sleep
from tests.unit.jit.test_build import KernelCache, PretendCompiler, SM_90A, Settings, build

class SlowCompiler(PretendCompiler):
    def compile(self, *arguments):
        sleep(0.3)
        return super().compile(*arguments)

cache = KernelCache(Path({cache!r}), 2**30)
print("ready", flush=True)
sys.stdin.readline()
kernel = build("source", SM_90A, settings=Settings(), compiler=SlowCompiler(Path({notes!r})), cache=cache)
print(kernel.key, kernel.from_cache)
"""


def test_several_processes_compile_once(cache: KernelCache, pretend: PretendCompiler) -> None:
    root = str(Path(jitmk.__file__).parent.parent)
    code = CHILD.format(root=root, cache=str(cache.root), notes=str(pretend.notes))
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate()[0].split() for child in children]
    assert len({key for key, _ in answers}) == 1
    assert sorted(from_cache for _, from_cache in answers) == ["False", "True", "True", "True"]
    assert pretend.compiles == 1
