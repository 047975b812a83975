"""LlamaForCausalLM: Llama 1 to 3.2, and the many models that are Llama in all but name."""

from __future__ import annotations

from jitmk.errors import ConfigError, UnsupportedModelError
from jitmk.model.families.base import Family, LoadedFamily, TensorRef
from jitmk.model.families.config_reader import ConfigReader, shown
from jitmk.model.families.rope_config import read_rope
from jitmk.model.spec import Activation, LayerSpec, ModelSpec, NormKind, NormSpec, Role, WeightKey, weight_shapes

_GLOBAL_NAMES = {
    Role.EMBEDDING: "model.embed_tokens.weight",
    Role.FINAL_NORM: "model.norm.weight",
    Role.LM_HEAD: "lm_head.weight",
}
_LAYER_NAMES = {
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
_ACTIVATIONS = {"silu": Activation.SILU, "swish": Activation.SILU}
_DTYPES = ("bfloat16", "float16", "float32")


def tensor_ref(key: WeightKey) -> TensorRef:
    """Where Llama checkpoints keep a logical tensor."""
    if key.layer is None:
        return TensorRef(_GLOBAL_NAMES[key.role])
    return TensorRef(f"model.layers.{key.layer}.{_LAYER_NAMES[key.role]}")


def read_dtype(config: ConfigReader) -> str | None:
    """The weights' type by config.json (`dtype`, before transformers 5 `torch_dtype`), or None.

    Raises:
        UnsupportedModelError: a type that jitmk does not read.
    """
    for key in ("dtype", "torch_dtype"):
        if key in config:
            name = config.text(key).removeprefix("torch.")
            if name not in _DTYPES:
                raise UnsupportedModelError(
                    f"{config.where}: {key}={shown(name)} is not supported: jitmk reads {', '.join(_DTYPES)}"
                )
            return name
    return None


def read_activation(config: ConfigReader) -> Activation:
    """The MLP's activation. Raises UnsupportedModelError for one that jitmk does not run."""
    name = config.text("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.where}: hidden_act={shown(name)} is not supported: jitmk runs {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def read_head_dim(config: ConfigReader, hidden_size: int, num_heads: int) -> int:
    """`head_dim`, or hidden_size / num_heads where the config has none. Raises ConfigError when that is no integer."""
    if "head_dim" in config:
        return config.integer("head_dim")
    if hidden_size % num_heads:
        raise ConfigError(
            f"{config.where}: hidden_size={hidden_size} is not a multiple of num_attention_heads={num_heads}, "
            "and there is no head_dim"
        )
    return hidden_size // num_heads


def read_llama(config: ConfigReader) -> LoadedFamily:
    """Reads a LlamaForCausalLM config. Defaults are those of transformers' LlamaConfig, but sizes must be given.

    Raises:
        UnsupportedModelError: a setting that jitmk does not run; the message says what it does run.
        ConfigError: a value that is missing or malformed.
    """
    config.refuse_known()
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim, num_layers = read_head_dim(config, hidden_size, num_heads), config.integer("num_hidden_layers")
    max_positions = config.integer("max_position_embeddings", 2048)
    tied, attention_bias = config.flag("tie_word_embeddings"), config.flag("attention_bias")
    spec = ModelSpec(
        family="llama",
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        norm=NormSpec(NormKind.RMS, config.number("rms_norm_eps", 1e-6, minimum=0.0)),
        ropes=(read_rope(config, head_dim, max_positions),),
        layers=(LayerSpec(),) * num_layers,
        attention_scale=head_dim**-0.5,
        activation=read_activation(config),
        max_positions=max_positions,
        tied_embeddings=tied,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias"),
    )
    # Checkpoints of Llama 1 and 2 carry the rotary frequencies, and some tied ones the head a second time.
    ignorable = (r"(model\.layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",) + ((r"lm_head\.weight",) if tied else ())
    return LoadedFamily(spec, {key: tensor_ref(key) for key in weight_shapes(spec)}, read_dtype(config), ignorable)


LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    read=read_llama,
    # pretraining_tp > 1 computes each projection as a sum of slices: the same product, rounded differently.
    harmless=frozenset({"pretraining_tp"}),
)
