"""GPT2LMHeadModel: learned positions, layer norms, biases everywhere, and matrices stored as [in, out]."""

from __future__ import annotations

from dataclasses import replace

from jitmk.errors import ConfigError
from jitmk.model.families.base import Family, LoadedFamily, TensorRef
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import loaded, read_activation
from jitmk.model.families.names import stacked, tensor_refs
from jitmk.model.spec import LayerSpec, ModelSpec, NormKind, NormSpec, Role, WeightKey

_PREFIX = "transformer."
_LAYER = _PREFIX + "h.{}."
_NAMES = {
    Role.EMBEDDING: _PREFIX + "wte.weight",
    Role.POSITION_EMBEDDING: _PREFIX + "wpe.weight",
    Role.FINAL_NORM: _PREFIX + "ln_f.weight",
    Role.FINAL_NORM_BIAS: _PREFIX + "ln_f.bias",
    Role.LM_HEAD: "lm_head.weight",
    Role.ATTENTION_NORM: _LAYER + "ln_1.weight",
    Role.ATTENTION_NORM_BIAS: _LAYER + "ln_1.bias",
    Role.O: _LAYER + "attn.c_proj.weight",
    Role.O_BIAS: _LAYER + "attn.c_proj.bias",
    Role.MLP_NORM: _LAYER + "ln_2.weight",
    Role.MLP_NORM_BIAS: _LAYER + "ln_2.bias",
    Role.UP: _LAYER + "mlp.c_fc.weight",
    Role.UP_BIAS: _LAYER + "mlp.c_fc.bias",
    Role.DOWN: _LAYER + "mlp.c_proj.weight",
    Role.DOWN_BIAS: _LAYER + "mlp.c_proj.bias",
}
_TRANSPOSED = (Role.O, Role.UP, Role.DOWN)


def read_gpt2(config: ConfigReader) -> LoadedFamily:
    """Reads a GPT2LMHeadModel config.

    Raises:
        UnsupportedModelError: a setting that jitmk does not run; the message says what it does run.
        ConfigError: a value that is missing or malformed.
    """
    config.refuse_known()
    config.refuse_unless("add_cross_attention", False, reason="jitmk runs decoders that read nothing but their tokens")
    config.refuse_unless("scale_attn_by_inverse_layer_idx", False, reason="jitmk scales the scores of all layers alike")
    hidden_size, num_heads, num_layers = config.integer("n_embd"), config.integer("n_head"), config.integer("n_layer")
    if hidden_size % num_heads:
        raise ConfigError(f"{config.where}: n_embd={hidden_size} is not a multiple of n_head={num_heads}")
    head_dim = hidden_size // num_heads
    spec = ModelSpec(
        family="gpt2",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("n_inner", 4 * hidden_size),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        norm=NormSpec(NormKind.LAYER, config.number("layer_norm_epsilon", 1e-5, minimum=0.0), bias=True),
        learned_positions=True,
        layers=(LayerSpec(rope=None),) * num_layers,
        attention_scale=head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0,
        activation=read_activation(config, "activation_function", "gelu_new"),
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        max_positions=config.integer("n_positions", 1024),
        tied_embeddings=config.flag("tie_word_embeddings", True),
    )
    # Some checkpoints carry the causal mask, and what stands in place of minus infinity in it.
    ignorable = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",)
    return loaded(config, spec, _tensors(spec), ignorable=ignorable, optional_prefix=_PREFIX)


def _tensors(spec: ModelSpec) -> dict[WeightKey, TensorRef]:
    tensors = tensor_refs(spec, _NAMES)
    for layer in range(spec.num_layers):
        for role in _TRANSPOSED:
            tensors[WeightKey(role, layer)] = replace(tensors[WeightKey(role, layer)], transpose=True)
        matrices, biases = (Role.Q, Role.K, Role.V), (Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS)
        tensors |= stacked(spec, layer, matrices, _LAYER + "attn.c_attn.weight", transpose=True)
        tensors |= stacked(spec, layer, biases, _LAYER + "attn.c_attn.bias")
    return tensors


GPT2 = Family(
    "gpt2",
    ("GPT2LMHeadModel",),
    read_gpt2,
    frozenset(
        {
            "n_ctx",  # n_positions once more
            "n_special",
            "predict_special_tokens",
            "output_past",
            "reorder_and_upcast_attn",  # the order of roundings
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
            "_num_labels",
        }
    ),
)
