"""config.json dictionaries of Llama models, for the tests of this folder."""

from __future__ import annotations

from typing import Any


def llama_config(**changes: Any) -> dict[str, Any]:
    """A small Llama's config.json; a change to None removes the key."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    return {key: value for key, value in (config | changes).items() if value is not None}
