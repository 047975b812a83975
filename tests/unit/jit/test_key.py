"""The key changes with everything that a cubin depends on, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import jitmk
from jitmk.arch import GpuArch
from jitmk.jit import key as key_module
from jitmk.jit.key import kernel_key
from tests.unit.jit.sources import PretendCompiler

SM_90A = GpuArch.parse("sm_90a")


def key_of(
    source: str = "source", arch: GpuArch = SM_90A, options: tuple[str, ...] = ("-a", "-b"), build: str = "build 1"
) -> str:
    return kernel_key(source, arch, options, PretendCompiler(Path("unused"), build))


def test_it_is_stable_and_safe_as_a_file_name() -> None:
    assert key_of() == key_of()
    assert len(key_of()) == 64
    assert set(key_of()) <= set("0123456789abcdef")


def test_each_part_counts() -> None:
    keys = {
        key_of(),
        key_of(source="other"),
        key_of(arch=GpuArch.parse("sm_100a")),
        key_of(options=("-b", "-a")),
        key_of(options=("-a",)),
        key_of(options=("-a -b",)),
        key_of(build="build 2"),
    }
    assert len(keys) == 7


def test_the_backend_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of()
    monkeypatch.setattr(PretendCompiler, "name", "another")
    assert key_of() != before


def test_version_and_schema_count(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_of()}
    monkeypatch.setattr(jitmk, "__version__", "999")
    keys.add(key_of())
    monkeypatch.setattr(key_module, "SCHEMA", 999)
    keys.add(key_of())
    assert len(keys) == 3


def test_where_the_compiler_lies_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of()
    monkeypatch.setattr(PretendCompiler, "location", "/another/place")
    assert key_of() == before


def test_how_many_sms_there_are_does_not_count_by_itself() -> None:
    assert key_of(arch=GpuArch.parse("sm_90a", sm_count=7)) == key_of()
