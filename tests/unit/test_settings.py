"""Settings: every variable, its values, its errors, its place in the README."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

import pytest

from jitmk.errors import SettingsError
from jitmk.settings import VARIABLES, Settings, compiler_environment, get_settings, markdown_table

README = Path(__file__).resolve().parents[2] / "README.md"


def test_defaults() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings(search_path=os.defpath)
    assert settings.use_nvrtc is None
    assert settings.cache_max_bytes == 2 * 1024**3
    assert settings.wait_deadline_ms == 2000


def test_every_variable_sets_a_field_of_its_own() -> None:
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert len({variable.field for variable in VARIABLES}) == len(VARIABLES)
    assert {variable.field for variable in VARIABLES} == fields - {"cuda_home", "search_path"}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("JITMK_USE_NVRTC", "use_nvrtc"),
        ("JITMK_DEBUG", "debug"),
        ("JITMK_PRINT_COMPILER_COMMAND", "print_compiler_command"),
        ("JITMK_PTXAS_VERBOSE", "ptxas_verbose"),
        ("JITMK_PRINT_CONFIGS", "print_configs"),
    ],
)
def test_flags(name: str, field: str) -> None:
    assert getattr(Settings.from_environment({name: "1"}), field) is True
    assert getattr(Settings.from_environment({name: "0"}), field) is False
    assert getattr(Settings.from_environment({name: " "}), field) == getattr(Settings(), field)
    with pytest.raises(SettingsError, match=f"{name}='yes' is not allowed; allowed: `0` or `1`"):
        Settings.from_environment({name: "yes"})


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1", 1), ("4K", 4096), ("4k", 4096), ("3MiB", 3 * 2**20), ("3MB", 3 * 2**20), ("2 G", 2**31)],
)
def test_sizes(text: str, value: int) -> None:
    assert Settings.from_environment({"JITMK_CACHE_MAX_BYTES": text}).cache_max_bytes == value


@pytest.mark.parametrize("text", ["-1", "1.5G", "G", "many", "1X", "1_000", "٣", "0x10"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(SettingsError, match=r"JITMK_CACHE_MAX_BYTES=.*powers of 1024"):
        Settings.from_environment({"JITMK_CACHE_MAX_BYTES": text})


@pytest.mark.parametrize("text", ["0", "-5", "2s", "3600001", "1e3"])
def test_bad_deadlines(text: str) -> None:
    with pytest.raises(SettingsError, match="whole number from 1 to 3600000"):
        Settings.from_environment({"JITMK_WAIT_DEADLINE_MS": text})


def test_files_must_exist(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    with pytest.raises(SettingsError, match="there is no such file"):
        Settings.from_environment({"JITMK_NVCC": str(nvcc)})
    nvcc.write_text("")
    assert Settings.from_environment({"JITMK_NVCC": str(nvcc)}).nvcc == nvcc
    assert Settings.from_environment({"JITMK_NVRTC": str(nvcc)}).nvrtc == nvcc


def test_the_cache_folder_need_not_exist_but_must_be_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert Settings.from_environment({"JITMK_CACHE_DIR": str(folder)}).cache_dir == folder
    assert not folder.parent.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="is no folder"):
        Settings.from_environment({"JITMK_CACHE_DIR": str(tmp_path / "file")})


def test_home_is_expanded() -> None:
    assert Settings.from_environment({"JITMK_CACHE_DIR": "~/x"}).cache_dir == Path.home() / "x"
    with pytest.raises(SettingsError):
        Settings.from_environment({"JITMK_CACHE_DIR": "~no-such-user-here/x"})


def test_cuda_home_has_two_names() -> None:
    assert Settings.from_environment({"CUDA_PATH": "/a"}).cuda_home == Path("/a")
    assert Settings.from_environment({"CUDA_HOME": "/b", "CUDA_PATH": "/a"}).cuda_home == Path("/b")


def test_the_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMK_DEBUG", "1")
    assert get_settings().debug
    monkeypatch.setenv("JITMK_DEBUG", "0")
    assert not get_settings().debug


def test_a_misspelt_variable_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITMK_CASHE_DIR", "/x")
    with pytest.warns(UserWarning, match=r"JITMK_CASHE_DIR is not a setting .* did you mean JITMK_CACHE_DIR") as caught:
        get_settings()
    assert caught[0].filename == __file__


def test_known_variables_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Settings.from_environment({variable.name: "" for variable in VARIABLES})


def test_compilers_start_without_hidden_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-G")
    monkeypatch.setenv("NVCC_PREPEND_FLAGS", "-G")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    environment = compiler_environment()
    assert environment["SOMETHING_ELSE"] == "kept"
    assert not {"NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS"} & set(environment)


def test_the_table_has_a_row_for_each_variable() -> None:
    rows = markdown_table().splitlines()
    assert len(rows) == 2 + len(VARIABLES)
    columns = {row.count("|") for row in rows}
    assert columns == {6}
    for variable in VARIABLES:
        assert sum(f"`{variable.name}`" in row for row in rows) == 1


def test_the_readme_shows_this_table() -> None:
    assert markdown_table() in README.read_text(encoding="utf-8")
