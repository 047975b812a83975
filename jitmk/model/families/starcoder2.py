"""Starcoder2ForCausalLM: layer norms, biases, an MLP without a gate, and a window."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import Defaults, loaded, read_decoder, read_window
from jitmk.model.families.names import LAYER, LLAMA_NAMES, tensor_refs
from jitmk.model.spec import LayerSpec, NormKind, NormSpec, Role

_DEFAULTS = Defaults(
    max_positions=4096,
    num_kv_heads=2,
    norm_key="norm_epsilon",
    norm_eps=1e-5,
    activation="gelu_pytorch_tanh",
    tied_embeddings=True,
)
_NAMES = {
    **LLAMA_NAMES,
    Role.UP: LAYER + "mlp.c_fc.weight",
    Role.UP_BIAS: LAYER + "mlp.c_fc.bias",
    Role.DOWN: LAYER + "mlp.c_proj.weight",
    Role.DOWN_BIAS: LAYER + "mlp.c_proj.bias",
}


def read_starcoder2(config: ConfigReader) -> LoadedFamily:
    """Reads a Starcoder2ForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "starcoder2", _DEFAULTS)
    # What the first checkpoints say besides; the architecture has one way of doing each.
    config.refuse_unless("norm_type", "layer_norm", reason="the norms of this family are layer norms")
    config.refuse_unless("mlp_type", "default", reason="the MLP of this family has no gate")
    config.refuse_unless("scale_attn_weights", True, reason="this family scales scores by head_dim**-0.5")
    use_bias = config.flag("use_bias", True)
    spec = replace(
        spec,
        norm=NormSpec(NormKind.LAYER, spec.norm.eps, bias=True),
        layers=(LayerSpec(window=read_window(config)),) * spec.num_layers,
        gated=False,
        qkv_bias=use_bias,
        o_bias=use_bias,
        mlp_bias=use_bias,
    )
    return loaded(config, spec, tensor_refs(spec, _NAMES))


STARCODER2 = Family(
    "starcoder2",
    ("Starcoder2ForCausalLM",),
    read_starcoder2,
    frozenset(
        {
            "activation_function",  # hidden_act is what counts
            "attention_softmax_in_fp32",
            "embedding_dropout",
            "layer_norm_epsilon",  # norm_epsilon is what counts
            "residual_dropout",
            "scale_attention_softmax_in_fp32",
        }
    ),
)
