"""The truth that models are held to: the same weights in fp32 through transformers, and its own bf16 beside it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch

from jitmk.model.checkpoint import WeightSource
from jitmk.model.spec import ModelSpec, Role, RopeKind, WeightKey, weight_shapes

_NAMES = {
    Role.EMBEDDING: "model.embed_tokens.weight",
    Role.FINAL_NORM: "model.norm.weight",
    Role.LM_HEAD: "lm_head.weight",
    Role.ATTENTION_NORM: "input_layernorm.weight",
    Role.Q: "self_attn.q_proj.weight",
    Role.K: "self_attn.k_proj.weight",
    Role.V: "self_attn.v_proj.weight",
    Role.O: "self_attn.o_proj.weight",
    Role.MLP_NORM: "post_attention_layernorm.weight",
    Role.GATE: "mlp.gate_proj.weight",
    Role.UP: "mlp.up_proj.weight",
    Role.DOWN: "mlp.down_proj.weight",
    Role.Q_BIAS: "self_attn.q_proj.bias",
    Role.K_BIAS: "self_attn.k_proj.bias",
    Role.V_BIAS: "self_attn.v_proj.bias",
    Role.O_BIAS: "self_attn.o_proj.bias",
    Role.GATE_BIAS: "mlp.gate_proj.bias",
    Role.UP_BIAS: "mlp.up_proj.bias",
    Role.DOWN_BIAS: "mlp.down_proj.bias",
}


def llama_name(key: WeightKey) -> str:
    """The name of a tensor in a LlamaForCausalLM."""
    prefix = "" if key.layer is None else f"model.layers.{key.layer}."
    return prefix + _NAMES[key.role]


def _rope_parameters(spec: ModelSpec) -> dict[str, Any]:
    (rope,) = spec.ropes
    parameters: dict[str, Any] = {"rope_type": rope.kind.value, "rope_theta": rope.theta}
    if rope.kind not in (RopeKind.DEFAULT, RopeKind.LONGROPE):
        parameters["factor"] = rope.factor
    if rope.kind in (RopeKind.LLAMA3, RopeKind.YARN, RopeKind.LONGROPE):
        parameters["original_max_position_embeddings"] = rope.original_max_positions
    if rope.kind is RopeKind.LLAMA3:
        parameters |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind is RopeKind.YARN:
        parameters |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        parameters["attention_factor"] = rope.attention_factor
    if rope.kind is RopeKind.LONGROPE:
        parameters |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
        parameters["attention_factor"] = rope.attention_factor
    return parameters


def transformers_model(spec: ModelSpec, weights: WeightSource, dtype: torch.dtype) -> Any:
    """A LlamaForCausalLM of this spec with these weights, on the CPU."""
    transformers: Any = importlib.import_module("transformers")  # imported late: it takes seconds
    # Dynamic NTK takes the pretrained context from max_position_embeddings.
    dynamic = spec.ropes[0].kind is RopeKind.DYNAMIC
    config = transformers.LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.norm.eps,
        max_position_embeddings=spec.ropes[0].original_max_positions if dynamic else spec.max_positions,
        tie_word_embeddings=spec.tied_embeddings,
        attention_bias=spec.qkv_bias,
        mlp_bias=spec.mlp_bias,
        rope_parameters=_rope_parameters(spec),
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    state = {llama_name(key): weights.tensor(key).to(dtype) for key in weight_shapes(spec)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    if spec.tied_embeddings:
        model.tie_weights()
    return model


@torch.inference_mode()
def transformers_logits(spec: ModelSpec, weights: WeightSource, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Logits of every token of a prompt through transformers, fp32 [len(ids), vocab_size]."""
    logits: torch.Tensor = transformers_model(spec, weights, dtype)(torch.tensor([ids])).logits[0].float()
    return logits


def relative_error(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """|logits - truth| / |truth|, root mean squares over everything."""
    return float((logits - truth).norm() / truth.norm())


def mean_kl(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over positions of KL(softmax(truth) || softmax(logits)), in nats."""
    p, q = truth.double().log_softmax(-1), logits.double().log_softmax(-1)
    value = float((p.exp() * (p - q)).sum(-1).mean())
    assert not math.isnan(value)
    return value
