"""The checkpoints that are compared with transformers: several of every family, and any that hypothesis draws."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

from tests.support.checkpoints import WINDOW, TinyCheckpoint


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """`rope_parameters` of a config."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


LLAMA = (
    TinyCheckpoint("multi-head", {"num_key_value_heads": 2}),
    TinyCheckpoint(
        "linear-rope-head-80-tied",
        {
            "hidden_size": 320,
            "num_attention_heads": 4,
            "head_dim": 80,
            "tie_word_embeddings": True,
            **rope("linear", factor=4.0),
        },
    ),
    TinyCheckpoint(
        "dynamic-rope-head-96-gqa-3",
        {
            "num_attention_heads": 3,
            "hidden_size": 144,
            "head_dim": 96,
            # The pretrained context: prompt and generation go past it.
            "max_position_embeddings": 32,
            **rope("dynamic", factor=4.0),
        },
    ),
    TinyCheckpoint(
        "llama3-rope-head-128-biases",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "attention_bias": True,
            "mlp_bias": True,
            **rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        },
    ),
    TinyCheckpoint(
        "yarn-rope-head-256-fp16",
        {
            "head_dim": 256,
            "tie_word_embeddings": True,
            **rope("yarn", factor=8.0, original_max_position_embeddings=32),
        },
        dtype=torch.float16,
    ),
    TinyCheckpoint(
        "odd-vocabulary-fp32-sharded",
        {"vocab_size": 4099, "num_hidden_layers": 1, "num_attention_heads": 9, "hidden_size": 144},
        dtype=torch.float32,
        shard_size="1MB",
    ),
)

_SMALL = {"vocab_size": 509}


def _of(family: str, *changes: dict[str, Any]) -> tuple[TinyCheckpoint, ...]:
    """What is special about a family (`TINY_OF`), and that with changes, by number."""
    return tuple(
        TinyCheckpoint(f"{family}-{number}", _SMALL | change, family=family)
        for number, change in enumerate(({}, *changes))
    )


_WIDE = {"hidden_size": 320, "num_attention_heads": 4, "num_key_value_heads": 2}

CHECKPOINTS = (
    *LLAMA,
    *_of(
        "mistral",
        {"head_dim": 128, "num_attention_heads": 8, "sliding_window": 17, "tie_word_embeddings": True},
        {"sliding_window": None},
    ),
    *_of("ministral", {"sliding_window": 5, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 96}),
    *_of("qwen2", {**_WIDE, "use_sliding_window": False, "tie_word_embeddings": True}),
    *_of(
        "qwen3",
        {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    *_of(
        "phi3",
        {**_WIDE, "hidden_size": 384, "rope_parameters": None, "sliding_window": 9, "tie_word_embeddings": True},
        rope("default", partial_rotary_factor=0.5),
    ),
    *_of(
        "gemma2",
        {"head_dim": 256, "attention_bias": True, "attn_logit_softcapping": None, "tie_word_embeddings": False},
        {"num_attention_heads": 4, "num_key_value_heads": 4, "final_logit_softcapping": None, "sliding_window": 100},
    ),
    *_of(
        "gemma3_text",
        {"head_dim": 256, "attention_bias": True, "rope_parameters": None, "final_logit_softcapping": 6.0},
        # Not 1: of that, transformers' cache keeps everything.
        {"head_dim": 128, "num_attention_heads": 4, "sliding_window": 2, "tie_word_embeddings": False},
    ),
    *_of(
        "gpt2",
        {"n_embd": 256, "n_head": 4, "n_inner": None, "activation_function": "gelu", "tie_word_embeddings": False},
        {"n_embd": 320, "n_head": 4, "activation_function": "relu"},
    ),
    *_of("olmo2", {"num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True}),
    *_of(
        "granite",
        {
            **_WIDE,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            # More, and a token is so sure to follow itself that nothing else matters.
            "embedding_multiplier": 0.5,
        },
    ),
    *_of(
        "starcoder2",
        # Twelve query heads a key/value head, as StarCoder2-3B has them.
        {"hidden_size": 768, "num_attention_heads": 12, "sliding_window": None},
        {"use_bias": False, "sliding_window": 30, "hidden_act": "gelu", "tie_word_embeddings": False},
    ),
    *_of(
        "smollm3",
        {"no_rope_layers": [0, 1, 1, 0], "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [0, 0, 0, 0]},
    ),
    *_of("cohere", {"attention_bias": True, "tie_word_embeddings": False}, {"use_qk_norm": False}),
)

LLAMA_ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16, "beta_fast": 24.0},
)

_HEAD_DIMS = (64, 80, 96, 128, 256)
_WITHOUT_HEAD_DIM = ("qwen2", "phi3", "olmo2", "granite", "starcoder2", "smollm3", "cohere")
_WITH_ATTENTION_BIAS = ("llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "granite", "smollm3", "cohere")
_WITH_MLP_BIAS = ("llama", "granite", "smollm3")
_WITH_ROPES = ("llama", "qwen2", "qwen3", "granite", "smollm3", "olmo2")
_EPSILONS = {"gpt2": "layer_norm_epsilon", "starcoder2": "norm_epsilon", "cohere": "layer_norm_eps"}

_Changes = dict[str, st.SearchStrategy[Any]]
_BOOLEAN = st.booleans()
_SCALE = st.sampled_from([0.25, 1.0, 3.0])
_WINDOWS = st.sampled_from([1, 7, WINDOW, 200])
_SPECIAL: dict[str, _Changes] = {
    "mistral": {"sliding_window": st.none() | _WINDOWS},
    "ministral": {"sliding_window": _WINDOWS},
    "qwen2": {"use_sliding_window": _BOOLEAN, "sliding_window": _WINDOWS, "max_window_layers": st.integers(0, 3)},
    "qwen3": {"use_sliding_window": _BOOLEAN, "sliding_window": _WINDOWS, "max_window_layers": st.integers(0, 3)},
    # Frequencies change where a sequence grows past this: not between what is prefilled and what is decoded here.
    "phi3": {"sliding_window": st.none() | _WINDOWS, "original_max_position_embeddings": st.sampled_from([16, 128])},
    "gemma2": {
        "sliding_window": _WINDOWS,
        "attn_logit_softcapping": st.sampled_from([None, 2.0, 50.0]),
        "final_logit_softcapping": st.sampled_from([None, 5.0, 30.0]),
        "query_pre_attn_scalar": st.sampled_from([64, 144, 256]),
    },
    "gemma3_text": {
        "sliding_window": _WINDOWS,
        "sliding_window_pattern": st.integers(1, 4),
        "query_pre_attn_scalar": st.sampled_from([64, 168, 256]),
    },
    "gpt2": {
        "activation_function": st.sampled_from(["gelu_new", "gelu", "relu", "silu"]),
        "scale_attn_weights": _BOOLEAN,
    },
    "granite": {
        "embedding_multiplier": _SCALE,
        "residual_multiplier": st.sampled_from([0.25, 0.5, 1.0]),
        "attention_multiplier": st.sampled_from([0.05, 0.125]),
        "logits_scaling": _SCALE,
    },
    "starcoder2": {
        "sliding_window": st.none() | _WINDOWS,
        "use_bias": _BOOLEAN,
        "hidden_act": st.sampled_from(["gelu_pytorch_tanh", "gelu", "relu", "silu"]),
    },
    "smollm3": {"no_rope_layer_interval": st.integers(1, 5)},
    "cohere": {"use_qk_norm": _BOOLEAN, "logit_scale": _SCALE},
}
"""What a family's configs may differ in beside sizes and what many families share."""


@st.composite
def any_checkpoint(draw: st.DrawFn, family: str) -> TinyCheckpoint:
    """A checkpoint of any small shape that a config of the family can have."""
    layers = draw(st.integers(2, 4))
    changes: dict[str, Any] = {"vocab_size": draw(st.integers(200, 1000)), "tie_word_embeddings": draw(_BOOLEAN)}
    changes |= {key: draw(strategy) for key, strategy in _SPECIAL.get(family, {}).items()}
    changes |= _gpt2_sizes(draw, layers) if family == "gpt2" else _sizes(draw, family, layers)
    changes[_EPSILONS.get(family, "rms_norm_eps")] = draw(st.sampled_from([1e-6, 1e-5, 1e-3]))
    if family in _WITH_ATTENTION_BIAS:
        changes["attention_bias"] = draw(_BOOLEAN)
    if family in _WITH_MLP_BIAS:
        changes["mlp_bias"] = draw(_BOOLEAN)
    if family in _WITH_ROPES:
        changes["rope_parameters"] = {
            "rope_theta": draw(st.sampled_from([1e4, 5e5])),
            **draw(st.sampled_from(LLAMA_ROPES)),
        }
    if family == "ministral":
        kinds = st.sampled_from(["sliding_attention", "full_attention"])
        changes["layer_types"] = draw(st.lists(kinds, min_size=layers, max_size=layers))
    # In bf16, so that the weights are the truth's own. Rounding others to bf16 is an error that both sides share, and
    # in a small model the largest one: which side is closer would be chance.
    return TinyCheckpoint("random", changes, dtype=torch.bfloat16, family=family)


def _sizes(draw: st.DrawFn, family: str, layers: int) -> dict[str, Any]:
    if family in _WITHOUT_HEAD_DIM:
        head_dim = 64 if family == "phi3" else draw(st.sampled_from([64, 80, 128]))
        kv_heads = draw(st.sampled_from([1, 2]))
        heads = kv_heads * draw(st.integers(1, 4 // kv_heads))
        hidden: dict[str, Any] = {"hidden_size": heads * head_dim}
        if family == "starcoder2" and kv_heads == 1 and head_dim == 64:
            heads = draw(st.integers(1, 12))
            hidden = {"hidden_size": heads * head_dim}
    else:
        kv_heads, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 10))
        heads = kv_heads * ratio
        # transformers wants a hidden size that the heads divide, jitmk a multiple of 16.
        grain = math.lcm(16, heads)
        hidden = {
            "hidden_size": grain * draw(st.integers(-(-64 // grain), max(1, 320 // grain))),
            "head_dim": draw(st.sampled_from(_HEAD_DIMS)),
        }
    return hidden | {
        "intermediate_size": 16 * draw(st.integers(4, 20)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def _gpt2_sizes(draw: st.DrawFn, layers: int) -> dict[str, Any]:
    heads = draw(st.integers(1, 5))
    return {
        "n_embd": heads * draw(st.sampled_from([64, 80])),
        "n_head": heads,
        "n_layer": layers,
        "n_inner": draw(st.none() | st.sampled_from([208, 320])),
    }
