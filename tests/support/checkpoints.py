"""Tiny checkpoints of every family as transformers writes them, with the bundled model's tokenizer beside them."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jitmk.models import bundled_model_dir

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

_TOKENS = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}

TINY = {
    **_TOKENS,
    "hidden_size": 128,
    "intermediate_size": 208,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
"""A LlamaConfig that runs in no time; its vocabulary is the bundled tokenizer's."""

WINDOW = 24
"""Positions that a sliding layer of a tiny model sees."""

_NO_HEAD_DIM = {key: value for key, value in TINY.items() if key != "head_dim"}  # of configs that do not know the key

TINY_OF: dict[str, dict[str, Any]] = {
    "llama": TINY,
    "mistral": TINY | {"sliding_window": WINDOW},
    "ministral": TINY
    | {
        "num_hidden_layers": 3,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen2": _NO_HEAD_DIM | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": TINY | {"num_attention_heads": 4, "num_key_value_heads": 2, "use_sliding_window": False},
    "phi3": _NO_HEAD_DIM
    | {
        "original_max_position_embeddings": 40,
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0 + i / 24 for i in range(24)],
            "long_factor": [1.0 + i for i in range(24)],
        },
    },
    "gemma2": TINY
    | {
        "num_hidden_layers": 3,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 100,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": TINY
    | {
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 100,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "gpt2": _TOKENS | {"n_embd": 128, "n_inner": 208, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "olmo2": _NO_HEAD_DIM | {"num_attention_heads": 4, "hidden_size": 256, "num_key_value_heads": 2},
    "granite": _NO_HEAD_DIM
    | {
        "embedding_multiplier": 6.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
        "logits_scaling": 0.5,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "starcoder2": _NO_HEAD_DIM | {"sliding_window": WINDOW, "tie_word_embeddings": True},
    "smollm3": _NO_HEAD_DIM | {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "cohere": _NO_HEAD_DIM
    | {
        "num_attention_heads": 4,
        "hidden_size": 256,
        "num_key_value_heads": 2,
        "use_qk_norm": True,
        "logit_scale": 0.5,
        "tie_word_embeddings": True,
    },
}
"""One config of every family, with what is special about the family switched on; keys are those of its config class."""


@dataclass(frozen=True)
class TinyCheckpoint:
    """What distinguishes a checkpoint from its family's entry of `TINY_OF`, and the type that it is stored in."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    shard_size: str = "1GB"
    family: str = "llama"

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the family's config class."""
        return TINY_OF[self.family] | self.changes

    def write(self, folder: Path, seed: int = 0) -> Path:
        """Writes the checkpoint; returns `folder`."""
        model = random_model(self.family, self.config, seed).to(self.dtype)
        model.save_pretrained(folder, max_shard_size=self.shard_size)
        for name in TOKENIZER_FILES:
            shutil.copy(bundled_model_dir() / name, folder / name)
        return folder


def load_transformers(folder: Path, dtype: torch.dtype) -> Any:
    """The checkpoint through transformers, on the CPU."""
    from transformers import AutoModelForCausalLM

    # In evaluation mode, as from_pretrained leaves it.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")


def random_model(family: str, config: dict[str, Any], seed: int) -> Any:
    """A model of transformers. Activations and logits keep the scale of 1; norms and biases are far enough from nothing
    to be missed."""
    import transformers

    classes: Any = transformers  # without types
    model = classes.AutoModelForCausalLM.from_config(classes.AutoConfig.for_model(family, **deepcopy(dict(config))))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            module, _, kind = name.rpartition(".")
            parameter.copy_(_scaled(values, type(model.get_submodule(module)).__name__, module, kind))
    return model


def _scaled(values: torch.Tensor, layer: str, module: str, kind: str) -> torch.Tensor:
    """Normal values as a parameter of a layer (the name of its class), which is called `module` in the model."""
    if "Norm" in layer:
        stored_minus_one = layer.startswith("Gemma")
        return values * 0.1 + (0.0 if kind == "bias" or stored_minus_one else 1.0)
    if values.ndim == 1:
        return values * 0.1
    inputs: int = values.shape[0] if layer == "Conv1D" else values.shape[1]
    # Logits that differ enough for a choice to be a choice.
    scale: float = (3 if "Embedding" in layer or module == "lm_head" else 1) * inputs**-0.5
    return values * scale
