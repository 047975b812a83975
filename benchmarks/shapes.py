"""The shapes that are measured: config.json of public models, so that every system runs the same one."""

from __future__ import annotations

from typing import Any

from jitmk.model.families import spec_from_config
from jitmk.model.spec import ModelSpec

_LLAMA_3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}

_PLAIN_ROPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _LLAMA_3
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "rope_scaling": _llama3_rope(32.0),
    },
    "llama-3.2-3b": _LLAMA_3
    | {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "rope_scaling": _llama3_rope(32.0),
    },
    "llama-3.1-8b": _LLAMA_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
        "rope_scaling": _llama3_rope(8.0),
    },
    "smollm2-360m": _PLAIN_ROPE
    | {
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        # The public config says 8192: raised, so that a prompt of 8192 tokens leaves room for new ones.
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    # The sizes of Qwen3-0.6B as a Llama: without the norms of queries and keys.
    "qwen3-0.6b-shape": _PLAIN_ROPE
    | {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
}
"""config.json by name."""


def model_spec(name: str, max_seq_len: int) -> ModelSpec:
    """The spec of a named shape with the context cut to `max_seq_len` tokens."""
    return spec_from_config(CONFIGS[name], max_seq_len=max_seq_len).spec


def step_bytes(spec: ModelSpec, context: float) -> int:
    """Bytes that a decode step must read: every matrix but an embedding table that is looked up, and old keys and
    values of `context` positions."""
    table = 0 if spec.tied_embeddings else spec.vocab_size * spec.hidden_size
    kv = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * context
    return int(2 * (spec.parameters - table + kv))
