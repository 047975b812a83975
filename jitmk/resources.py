"""Where the kernel templates and device headers lie: in the source tree, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

from jitmk.errors import JitmkError

_PACKAGE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    """The folder of the Jinja2 templates (``megakernel.cu.j2`` and its parts)."""
    return _find("_templates", "templates")


def headers_dir() -> Path:
    """The folder of the device headers; it holds the folder ``jitmk``, as ``#include <jitmk/...>`` names it."""
    return _find("_csrc_headers", "csrc_headers")


def _find(installed: str, in_source_tree: str) -> Path:
    candidates = (_PACKAGE / installed, _PACKAGE.parent / in_source_tree)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise JitmkError(
        f"jitmk's own files are missing: neither {candidates[0]} nor {candidates[1]} exists; install jitmk again"
    )
