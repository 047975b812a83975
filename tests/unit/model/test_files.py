"""From an id or a path to a folder, without any network."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from jitmk.errors import CheckpointError, ConfigError
from jitmk.model import files
from jitmk.model.files import read_config, read_generation_config, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config.json."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"eos_token_id": [1, 2], "bos_token_id": 0}))
    return tmp_path / "model"


def hub_that(monkeypatch: pytest.MonkeyPatch, outcome: Path | Exception) -> dict[str, Any]:
    """Replaces the download; returns what it was asked for."""
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def raised(kind: type[Exception], **attributes: Any) -> Exception:
    """An error of the Hub client, without the HTTP response that its constructor wants."""
    error = kind.__new__(kind)
    error.__dict__.update(attributes)
    return error


def test_a_local_folder_is_taken_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that(monkeypatch, AssertionError("the network was touched"))
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve("model") == Path("model")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/model") == folder


def test_a_hub_id_is_downloaded_without_pickle_or_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub_that(monkeypatch, folder)
    assert resolve("owner/name", revision="v1", token="t", cache_dir="~/x", local_files_only=True) == folder
    assert (asked["repo_id"], asked["revision"], asked["token"], asked["local_files_only"]) == (
        "owner/name",
        "v1",
        "t",
        True,
    )
    assert asked["cache_dir"] == str(Path("~/x").expanduser())
    names = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
    ]
    unwanted = ["pytorch_model.bin", "model.pt", "a.pth", "run.py", "original/params.json", "consolidated.safetensors"]
    kept = [
        name
        for name in names + unwanted
        if any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
        and not any(fnmatch(name, pattern) for pattern in asked["ignore_patterns"])
    ]
    assert kept == names


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", Path("nowhere")])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_that(monkeypatch, AssertionError("the network was touched"))
    with pytest.raises(CheckpointError, match="there is no folder"):
        resolve(path)


def test_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file: pass the folder"):
        resolve(folder / "config.json")


def test_a_revision_of_a_local_folder_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="revision='main'"):
        resolve(folder, revision="main")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        resolve(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="adapter, merge it"):
        resolve(tmp_path)


@pytest.mark.parametrize("wrong", ["", "two words", "--", "x" * 200])
def test_what_cannot_be_an_id_is_refused(wrong: str) -> None:
    with pytest.raises(CheckpointError, match="Hub id"):
        resolve(wrong)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (raised(errors.RepositoryNotFoundError), "no folder 'owner/name' here and no model of that name"),
        (raised(errors.GatedRepoError), "gated: ask for access at https://huggingface.co/owner/name"),
        (raised(errors.RevisionNotFoundError), "no revision 'v9'"),
        (raised(errors.LocalEntryNotFoundError), "the Hub cannot be reached"),
        (raised(errors.OfflineModeIsEnabled), "network is switched off"),
        (raised(errors.HfHubHTTPError, response=SimpleNamespace(status_code=503)), "HTTP status 503"),
        (OSError(28, "No space left on device"), "could not be downloaded: OSError.*No space left"),
        (TimeoutError("slow"), "could not be downloaded: TimeoutError: slow"),
    ],
)
def test_what_goes_wrong_with_a_download_is_explained(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_that(monkeypatch, error)
    monkeypatch.setattr(files, "_told_to_be_offline", lambda: False)
    with pytest.raises(CheckpointError, match=says):
        resolve("owner/name", revision="v9")


def test_offline_without_a_cached_copy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="local_files_only"):
        resolve("owner/name", cache_dir=tmp_path, local_files_only=True)


def test_generation_config_falls_back_to_the_token_ids_of_the_config(folder: Path) -> None:
    assert read_generation_config(folder) == {"eos_token_id": [1, 2], "bos_token_id": 0}
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    assert read_generation_config(folder) == {"do_sample": True}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_malformed_json_is_named(folder: Path, content: bytes, says: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"config\.json.*{says}"):
        read_config(folder)
