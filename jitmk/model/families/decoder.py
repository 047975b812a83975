"""Reading config.json the way most decoders write it: Llama's keys. Families `replace` what is different with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jitmk.errors import ConfigError, UnsupportedModelError
from jitmk.model.families.base import LoadedFamily, TensorRef
from jitmk.model.families.config_reader import ConfigReader, shown
from jitmk.model.families.rope_config import LLAMA_ROPE, RopeRules, read_rope
from jitmk.model.spec import Activation, LayerSpec, ModelSpec, NormKind, NormSpec, WeightKey

_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}
_DTYPES = ("bfloat16", "float16", "float32")
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Defaults:
    """What a family takes for keys that its config.json lacks; those of LlamaConfig unless given.

    Attributes:
        num_kv_heads: None for as many as query heads.
        head_dim: None for hidden_size / num_attention_heads.
        norm_key, norm_eps: the epsilon of the norms, and how its key is called.
        activation_key, activation: likewise.
        rope: what is particular about its rotary embedding; None for a family that reads its own.
    """

    max_positions: int = 2048
    num_kv_heads: int | None = None
    head_dim: int | None = None
    norm_key: str = "rms_norm_eps"
    norm_eps: float = 1e-6
    activation_key: str = "hidden_act"
    activation: str = "silu"
    tied_embeddings: bool = False
    rope: RopeRules | None = LLAMA_ROPE


def read_decoder(config: ConfigReader, family: str, defaults: Defaults) -> ModelSpec:
    """The decoder that Llama's keys describe: RMS norms, one rotary embedding for all layers, a gated MLP, no biases,
    no windows. Sizes must be given.

    Raises:
        UnsupportedModelError: a setting that jitmk does not run; the message says what it does run.
        ConfigError: a value that is missing or malformed.
    """
    config.refuse_known()
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    num_layers = config.integer("num_hidden_layers")
    head_dim = read_head_dim(config, hidden_size, num_heads, defaults.head_dim)
    max_positions = config.integer("max_position_embeddings", defaults.max_positions)
    ropes = () if defaults.rope is None else (read_rope(config, head_dim, max_positions, defaults.rope),)
    return ModelSpec(
        family=family,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_read_kv_heads(config, num_heads, defaults.num_kv_heads),
        head_dim=head_dim,
        norm=NormSpec(NormKind.RMS, config.number(defaults.norm_key, defaults.norm_eps, minimum=0.0)),
        ropes=ropes,
        layers=(LayerSpec(rope=0 if ropes else None),) * num_layers,
        attention_scale=head_dim**-0.5,
        activation=read_activation(config, defaults.activation_key, defaults.activation),
        max_positions=max_positions,
        tied_embeddings=config.flag("tie_word_embeddings", defaults.tied_embeddings),
    )


def loaded(
    config: ConfigReader,
    spec: ModelSpec,
    tensors: Mapping[WeightKey, TensorRef],
    *,
    ignorable: tuple[str, ...] = (),
    optional_prefix: str = "",
) -> LoadedFamily:
    """A LoadedFamily with what all families share: the dtype, and a head that tied checkpoints carry a second time."""
    if spec.tied_embeddings:
        ignorable += (r"lm_head\.weight",)
    return LoadedFamily(spec, tensors, read_dtype(config), ignorable, optional_prefix)


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


def read_activation(config: ConfigReader, key: str, default: str) -> Activation:
    """The MLP's activation. Raises UnsupportedModelError for one that jitmk does not run."""
    name = config.text(key, default)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{config.where}: {key}={shown(name)} is not supported: jitmk runs {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def read_head_dim(config: ConfigReader, hidden_size: int, num_heads: int, default: int | None = None) -> int:
    """`head_dim`; where the config has none `default`, or else hidden_size / num_heads.

    Raises:
        ConfigError: neither is there, and num_heads does not divide hidden_size.
    """
    if "head_dim" in config:
        return config.integer("head_dim")
    if default is not None and not config.is_null("head_dim"):
        return default
    if hidden_size % num_heads:
        raise ConfigError(
            f"{config.where}: hidden_size={hidden_size} is not a multiple of num_attention_heads={num_heads}, "
            "and there is no head_dim"
        )
    return hidden_size // num_heads


def _read_kv_heads(config: ConfigReader, num_heads: int, default: int | None) -> int:
    if default is None or config.is_null("num_key_value_heads"):
        default = num_heads
    return config.integer("num_key_value_heads", default)


def read_window(config: ConfigReader, default: int | None = None) -> int | None:
    """`sliding_window` in positions. null is no window; a config without the key has `default`."""
    if config.is_null("sliding_window") or (default is None and "sliding_window" not in config):
        return None
    return config.integer("sliding_window", default)


def read_soft_cap(config: ConfigReader, key: str, default: float | None = None) -> float | None:
    """The cap of cap * tanh(x / cap). null is no cap; a config without the key has `default`."""
    if config.is_null(key) or (default is None and key not in config):
        return None
    return config.number(key, default, minimum=0.0, exclusive=True)


def read_layer_types(config: ConfigReader, num_layers: int) -> tuple[str, ...] | None:
    """`layer_types`: "full_attention" or "sliding_attention" for each layer; None where the config has none.

    Raises:
        UnsupportedModelError: another kind of layer.
        ConfigError: not one for each layer.
    """
    if "layer_types" not in config:
        return None
    types = config.sequence("layer_types")
    for name in types:
        if name not in _LAYER_TYPES:
            raise UnsupportedModelError(
                f"{config.where}: layer_types names {shown(name)}, which is not supported: jitmk runs "
                f"{' and '.join(_LAYER_TYPES)}"
            )
    if len(types) != num_layers:
        raise ConfigError(
            f"{config.where}: layer_types has {len(types)} entries, but num_hidden_layers={num_layers}: "
            "it must have one for each layer"
        )
    return types


def windowed(config: ConfigReader, sliding: tuple[bool, ...], window: int | None) -> tuple[LayerSpec, ...]:
    """Layers of which some see a window.

    Raises:
        ConfigError: a layer slides, and there is no window.
    """
    if any(sliding) and window is None:
        raise ConfigError(
            f"{config.where}: layer {sliding.index(True)} has sliding attention, but there is no sliding_window: set "
            "it, or make the layers full_attention"
        )
    return tuple(LayerSpec(window=window if slides else None) for slides in sliding)


def read_sliding_layers(
    config: ConfigReader, num_layers: int, window: int | None, by_default: tuple[bool, ...]
) -> tuple[LayerSpec, ...]:
    """Layers as `layer_types` has them, or else as `by_default`: which of them slide. Raises as `read_layer_types`."""
    types = read_layer_types(config, num_layers)
    sliding = by_default if types is None else tuple(name == "sliding_attention" for name in types)
    return windowed(config, sliding, window)
