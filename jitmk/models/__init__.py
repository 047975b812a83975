"""The model that ships with jitmk, and the code that trained it (`jitmk.models.training`)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jitmk.errors import JitmkError

__all__ = ["BUNDLED_MODEL_NAME", "BundledModelMissingError", "bundled_model_dir"]

BUNDLED_MODEL_NAME: Final = "kjv-5m"
"""Name of the bundled model, and of its folder beside this file."""


class BundledModelMissingError(JitmkError):
    """The installed package does not contain the folder of the bundled model."""


def bundled_model_dir() -> Path:
    """Return the folder of the bundled model: an ordinary Hugging Face model folder.

    Raises:
        BundledModelMissingError: the installation lacks the folder (its package data were left out).
    """
    folder = Path(__file__).resolve().parent / BUNDLED_MODEL_NAME
    if not (folder / "config.json").is_file():
        raise BundledModelMissingError(
            f"the bundled model {BUNDLED_MODEL_NAME!r} is not in this installation: {folder / 'config.json'} does not "
            "exist. Install jitmk again from a complete wheel or source tree, or name another model."
        )
    return folder
