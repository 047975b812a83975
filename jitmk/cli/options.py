"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitmk.engine.model import Model

BACKENDS = ("auto", "megakernel", "reference", "torch")


def add_model_options(
    parser: argparse.ArgumentParser, *, backend: bool = True, positional: bool = False, length: bool = True
) -> None:
    """--model (or a positional argument) and how to find and hold it."""
    group = parser.add_argument_group("model")
    text = "Hub id or local folder (default: the bundled model)"
    if positional:
        group.add_argument("model", nargs="?", metavar="MODEL", help=text)
    else:
        group.add_argument("--model", metavar="ID_OR_PATH", help=text)
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--cache-dir", metavar="DIR", help="where the Hub's files are kept")
    group.add_argument("--local-files-only", action="store_true", help="download nothing")
    if length:
        group.add_argument(
            "--max-seq-len", type=int, metavar="N", help="positions of the KV cache (default: the context)"
        )
    if backend:
        group.add_argument("--backend", choices=BACKENDS, default="auto", help="what runs the model (default: auto)")
        group.add_argument("--device", help="cpu, cuda or cuda:N (default: as the backend wants)")


def load_from_options(args: argparse.Namespace, **overrides: Any) -> Model:
    """The model that the options name; `overrides` replace arguments of `load_model`."""
    from jitmk.api import load_model

    arguments: dict[str, Any] = {
        "revision": args.revision,
        "cache_dir": args.cache_dir,
        "local_files_only": args.local_files_only,
        "max_seq_len": args.max_seq_len,
        "backend": getattr(args, "backend", "auto"),
        "device": getattr(args, "device", None),
    }
    return load_model(args.model, **(arguments | overrides))


def model_folder(args: argparse.Namespace) -> Path:
    """The folder of the model that the options name, downloaded where it must be."""
    from jitmk.model.files import resolve
    from jitmk.models import bundled_model_dir

    return resolve(
        args.model or bundled_model_dir(),
        revision=args.revision,
        cache_dir=args.cache_dir,
        local_files_only=args.local_files_only,
    )
