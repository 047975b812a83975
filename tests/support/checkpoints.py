"""Tiny Llama checkpoints as transformers writes them, with the bundled model's tokenizer beside them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jitmk.models import bundled_model_dir

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

TINY = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 208,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
"""A LlamaConfig that runs in no time; its vocabulary is the bundled tokenizer's."""


@dataclass(frozen=True)
class TinyCheckpoint:
    """What distinguishes a checkpoint from `TINY`, and the type that it is stored in."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    shard_size: str = "1GB"

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of LlamaConfig."""
        return TINY | self.changes

    def write(self, folder: Path, seed: int = 0) -> Path:
        """Writes the checkpoint; returns `folder`."""
        model = _random_model(self.config, seed).to(self.dtype)
        model.save_pretrained(folder, max_shard_size=self.shard_size)
        for name in TOKENIZER_FILES:
            shutil.copy(bundled_model_dir() / name, folder / name)
        return folder


def load_transformers(folder: Path, dtype: torch.dtype) -> Any:
    """The checkpoint through transformers, on the CPU."""
    from transformers import LlamaForCausalLM

    # In evaluation mode, as from_pretrained leaves it.
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")


def _random_model(config: dict[str, Any], seed: int) -> Any:
    """Activations and logits keep the scale of 1; norms and biases are far enough from nothing to be missed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                # Logits that differ enough for a choice to be a choice.
                values *= (3 if "lm_head" in name or "embed" in name else 1) * parameter.shape[1] ** -0.5
            else:
                values *= 0.1
                values += 0.0 if name.endswith("bias") else 1.0
            parameter.copy_(values)
    return model
