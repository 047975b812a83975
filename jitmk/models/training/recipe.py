"""Every number that decides what the trained model is, in one frozen value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from typing import Any

from jitmk.errors import JitmkError


class TrainingError(JitmkError):
    """The bundled model cannot be trained as asked: the text, the recipe or the output folder is unusable."""


def _entry(default: int | float, explanation: str) -> Any:
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True)
class Recipe:
    """Shape of the network and course of its training. The defaults are those of the bundled model."""

    vocab_size: int = _entry(4096, "tokens of the byte-level BPE vocabulary, the two special ones included")
    hidden_size: int = _entry(256, "width of the residual stream")
    num_layers: int = _entry(6, "decoder layers")
    num_heads: int = _entry(4, "query heads")
    num_kv_heads: int = _entry(2, "key/value heads")
    head_dim: int = _entry(64, "width of a head")
    intermediate_size: int = _entry(704, "width of the MLP")
    context: int = _entry(1024, "tokens of a training window; becomes max_position_embeddings")
    rope_theta: float = _entry(10000.0, "base of the rotary position embedding")
    rms_norm_eps: float = _entry(1e-5, "epsilon of the RMS norms")

    dropout: float = _entry(0.3, "dropout on the embedding and on what each block adds to the residual stream")
    attention_dropout: float = _entry(0.2, "dropout on attention weights")
    weight_decay: float = _entry(0.1, "AdamW weight decay of matrices")
    learning_rate: float = _entry(1.5e-3, "peak learning rate")
    warmup_steps: int = _entry(100, "steps of linear warm-up before the cosine decay")
    steps: int = _entry(4000, "optimiser steps")
    batch_size: int = _entry(16, "windows of a step")
    evaluate_every: int = _entry(200, "steps between measurements of the validation loss")
    seed: int = _entry(1611, "seed of initialisation, windows, dropout and the card's samples")

    def __post_init__(self) -> None:
        at_least_one = (
            "hidden_size num_layers num_heads num_kv_heads head_dim intermediate_size steps batch_size evaluate_every"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise TrainingError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise TrainingError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.vocab_size < 258:
            raise TrainingError(f"vocab_size={self.vocab_size} must be at least 258: 256 bytes and 2 special tokens")
        if self.context < 2:
            raise TrainingError(f"context={self.context} must be at least 2")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise TrainingError(f"{name}={getattr(self, name)} must be in [0, 1)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser one flag per field of `Recipe`, with the field's default and explanation."""
    for entry in fields(Recipe):
        parser.add_argument(
            "--" + entry.name.replace("_", "-"),
            type=type(entry.default),
            default=entry.default,
            help=f"{entry.metadata['help']} (default: %(default)s)",
        )


def from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Build the recipe out of what `add_arguments`' flags were given."""
    return Recipe(**{entry.name: getattr(arguments, entry.name) for entry in fields(Recipe)})
