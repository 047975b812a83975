"""The network: `LlamaForCausalLM` of transformers, with dropout added from outside while it trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from jitmk.models.training.bpe import BOS_ID, EOS_ID
from jitmk.models.training.recipe import Recipe


def config_json(recipe: Recipe) -> dict[str, Any]:
    """Return the `config.json` of the trained model, in the spelling that every release of transformers reads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "head_dim": recipe.head_dim,
        "hidden_act": "silu",
        "hidden_size": recipe.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": recipe.intermediate_size,
        "max_position_embeddings": recipe.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": recipe.num_heads,
        "num_hidden_layers": recipe.num_layers,
        "num_key_value_heads": recipe.num_kv_heads,
        "rms_norm_eps": recipe.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": recipe.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": recipe.vocab_size,
    }


def build_network(recipe: Recipe) -> nn.Module:
    """Build the fp32 network with fresh weights, drawn from torch's global generator."""
    config = LlamaConfig(**{**config_json(recipe), "torch_dtype": "float32"})
    config.attention_dropout = recipe.attention_dropout
    network: Any = LlamaForCausalLM(config)
    # Llama has no dropout of its own outside attention, and a text read dozens of times needs it.
    network.model.embed_tokens.register_forward_hook(_Dropout(recipe.dropout))
    for layer in network.model.layers:
        layer.self_attn.o_proj.register_forward_hook(_Dropout(recipe.dropout))
        layer.mlp.down_proj.register_forward_hook(_Dropout(recipe.dropout))
    built: nn.Module = network
    return built


def logits_of(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return fp32 logits [batch, length, vocabulary] for token ids [batch, length]."""
    logits: torch.Tensor = network(input_ids=ids, use_cache=False).logits
    return logits.float()


class _Dropout:
    """Forward hook that applies dropout to a module's output while the module is in training mode."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(output, self.probability, training=module.training)
