"""From an id or a path to a local folder with a model's files, and reading the JSON files in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jitmk.errors import CheckpointError, ConfigError, JitmkError

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"

_WANTED = ["*.safetensors", "*.json", "*.jinja"]
_UNWANTED = [
    "*/*",  # original/, onnx/ and the like hold the weights a second time
    "consolidated*",  # so do Mistral's
    "adapter*",
]
"""What is downloaded: never pickle (.bin, .pt, .pth, .ckpt), never Python."""

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def resolve(
    id_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder that holds a model: a local one as it is, or one of the Hub, downloaded where it is not cached yet.

    What exists as a folder here is taken for that, whether or not the Hub has a model of that name.

    Args:
        id_or_path: a folder, or a Hub id such as "meta-llama/Llama-3.2-1B".
        revision: branch, tag or commit on the Hub; None for its default branch. A local folder has none.
        token: access token for the Hub; None or True for the one that is stored on this machine, False for none.
        cache_dir: where downloads are kept; None for huggingface_hub's own cache.
        local_files_only: use what was downloaded earlier, and do not touch the network.

    Raises:
        CheckpointError: there is no such folder or model, or it cannot be reached or read.
        ConfigError: the folder has no config.json.
    """
    text = os.fspath(id_or_path)
    if not isinstance(text, str) or not text:
        raise CheckpointError(f"{id_or_path!r} is neither a folder nor a Hub id such as 'meta-llama/Llama-3.2-1B'")
    path = Path(text).expanduser()
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(f"revision={revision!r} makes no sense for {path}: it is a local folder")
        folder = path
    elif path.exists():
        raise CheckpointError(f"{path} is a file: pass the folder that holds config.json and the weights")
    elif isinstance(id_or_path, os.PathLike) or _looks_like_a_path(text):
        raise CheckpointError(f"there is no folder {path}")
    else:
        folder = _download(text, revision, token, cache_dir, local_files_only)
    if not (folder / CONFIG_FILE).is_file():
        hint = (
            ": it is an adapter, merge it into its base model first"
            if (folder / "adapter_config.json").exists()
            else ""
        )
        raise ConfigError(f"{folder} has no {CONFIG_FILE}, so it is not a Hugging Face model{hint}")
    return folder


def read_json(path: Path, error: type[JitmkError] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        error: the file cannot be read, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"{path} cannot be read: {reason}") from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not valid JSON: {reason}") from reason
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, but must hold an object")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises ConfigError when it is missing or malformed."""
    return read_json(folder / CONFIG_FILE)


def read_generation_config(folder: Path) -> dict[str, Any]:
    """generation_config.json; without one, the token ids that config.json gives. Raises ConfigError when malformed."""
    path = folder / GENERATION_CONFIG_FILE
    if path.is_file():
        return read_json(path)
    config = read_config(folder)
    return {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}


def _looks_like_a_path(text: str) -> bool:
    """Whether `text` cannot be a Hub id, which is "name" or "owner/name"."""
    return text.startswith((".", "~", os.sep)) or text.endswith(os.sep) or text.count("/") > 1 or "\\" in text


def _download(
    repo_id: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else str(Path(cache_dir).expanduser()),
            local_files_only=local_files_only,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is neither a folder here nor a valid Hub id: {error}") from error
    except Exception as error:
        # huggingface_hub 0.x and 1.x raise what their HTTP libraries raise (requests, httpx), so the type of an
        # unexpected error says nothing here.
        raise CheckpointError(_explain(error, repo_id, revision, local_files_only)) from error
    return Path(folder)


def _explain(error: Exception, repo_id: str, revision: str | None, local_files_only: bool) -> str:
    """What went wrong with a download, and what to do about it."""
    from huggingface_hub import errors

    where = repo_id if revision is None else f"{repo_id} at revision {revision!r}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{where} is gated: ask for access at https://huggingface.co/{repo_id}, then log in "
            "(`hf auth login`) or pass token=..."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the Hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no folder {repo_id!r} here and no model of that name on the Hub; if the model is private, "
            "log in (`hf auth login`) or pass token=..."
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        absent = f"{where} is not (or not completely) on this machine, and the"
        if local_files_only or isinstance(error, errors.OfflineModeIsEnabled) or _told_to_be_offline():
            return f"{absent} network is switched off (local_files_only or HF_HUB_OFFLINE)"
        return f"{absent} Hub cannot be reached: check the network, or pass a local folder"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the Hub refused {where} with HTTP status {status}: {error}"
    return f"{where} could not be downloaded: {type(error).__name__}: {error}"


def _told_to_be_offline() -> bool:
    """Whether huggingface_hub was told (HF_HUB_OFFLINE) to stay off the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
