"""What checkpoints call their tensors: the names that most families share, and the way from names to TensorRefs."""

from __future__ import annotations

from collections.abc import Mapping

from jitmk.model.families.base import TensorRef
from jitmk.model.spec import ModelSpec, Role, WeightKey, weight_shapes

LAYER = "model.layers.{}."
"""Where a layer's tensors are; {} is its number."""

LLAMA_NAMES: Mapping[Role, str] = {
    Role.EMBEDDING: "model.embed_tokens.weight",
    Role.FINAL_NORM: "model.norm.weight",
    Role.FINAL_NORM_BIAS: "model.norm.bias",
    Role.LM_HEAD: "lm_head.weight",
    Role.ATTENTION_NORM: LAYER + "input_layernorm.weight",
    Role.ATTENTION_NORM_BIAS: LAYER + "input_layernorm.bias",
    Role.Q: LAYER + "self_attn.q_proj.weight",
    Role.K: LAYER + "self_attn.k_proj.weight",
    Role.V: LAYER + "self_attn.v_proj.weight",
    Role.O: LAYER + "self_attn.o_proj.weight",
    Role.MLP_NORM: LAYER + "post_attention_layernorm.weight",
    Role.MLP_NORM_BIAS: LAYER + "post_attention_layernorm.bias",
    Role.GATE: LAYER + "mlp.gate_proj.weight",
    Role.UP: LAYER + "mlp.up_proj.weight",
    Role.DOWN: LAYER + "mlp.down_proj.weight",
    Role.Q_BIAS: LAYER + "self_attn.q_proj.bias",
    Role.K_BIAS: LAYER + "self_attn.k_proj.bias",
    Role.V_BIAS: LAYER + "self_attn.v_proj.bias",
    Role.O_BIAS: LAYER + "self_attn.o_proj.bias",
    Role.GATE_BIAS: LAYER + "mlp.gate_proj.bias",
    Role.UP_BIAS: LAYER + "mlp.up_proj.bias",
    Role.DOWN_BIAS: LAYER + "mlp.down_proj.bias",
}
"""Names of LlamaForCausalLM. Families that differ in some write LLAMA_NAMES | {...}."""

QK_NORM_NAMES: Mapping[Role, str] = {
    Role.Q_NORM: LAYER + "self_attn.q_norm.weight",
    Role.K_NORM: LAYER + "self_attn.k_norm.weight",
}
"""Names of the norms of queries and keys, where there are any."""


def tensor_refs(spec: ModelSpec, names: Mapping[Role, str]) -> dict[WeightKey, TensorRef]:
    """Where each tensor of a model is stored, for those whose role is in `names`; {} in a name is the layer."""
    return {key: TensorRef(names[key.role].format(key.layer)) for key in weight_shapes(spec) if key.role in names}


def stacked(
    spec: ModelSpec, layer: int, roles: tuple[Role, ...], name: str, *, transpose: bool = False
) -> dict[WeightKey, TensorRef]:
    """Where the tensors of a layer are that a checkpoint keeps on top of each other in one, in the order of `roles`."""
    shapes, refs, begin = weight_shapes(spec), {}, 0
    for key in (WeightKey(role, layer) for role in roles):
        end = begin + shapes[key][0]
        refs[key] = TensorRef(name.format(layer), (begin, end), transpose=transpose)
        begin = end
    return refs
