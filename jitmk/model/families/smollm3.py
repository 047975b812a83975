"""SmolLM3ForCausalLM: a Llama some of whose layers do not rotate."""

from __future__ import annotations

from dataclasses import replace

from jitmk.errors import ConfigError
from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader, shown
from jitmk.model.families.decoder import Defaults, loaded, read_decoder, read_sliding_layers, read_window
from jitmk.model.families.names import LLAMA_NAMES, tensor_refs
from jitmk.model.families.rope_config import RopeRules

_DEFAULTS = Defaults(
    max_positions=32768, num_kv_heads=4, activation="silu", tied_embeddings=True, rope=RopeRules(theta=2e6)
)


def read_smollm3(config: ConfigReader) -> LoadedFamily:
    """Reads a SmolLM3ForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "smollm3", _DEFAULTS)
    rotates = _read_rotating_layers(config, spec.num_layers)
    window = read_window(config)
    if not config.flag("use_sliding_window"):
        window = None
    # Unless the config lists them, it is the layers without rotation that slide.
    by_default = tuple(window is not None and not rotating for rotating in rotates)
    layers = read_sliding_layers(config, spec.num_layers, window, by_default)
    attention_bias = config.flag("attention_bias")
    spec = replace(
        spec,
        ropes=spec.ropes if any(rotates) else (),
        layers=tuple(
            replace(layer, rope=0 if rotating else None) for layer, rotating in zip(layers, rotates, strict=True)
        ),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias"),
    )
    return loaded(config, spec, tensor_refs(spec, LLAMA_NAMES))


def _read_rotating_layers(config: ConfigReader, num_layers: int) -> tuple[bool, ...]:
    """Which layers rotate: those with a 1 in `no_rope_layers`, or all but every `no_rope_layer_interval`th."""
    interval = config.integer("no_rope_layer_interval", 4)
    if "no_rope_layers" not in config:
        return tuple((layer + 1) % interval != 0 for layer in range(num_layers))
    listed = config.sequence("no_rope_layers")
    if len(listed) < num_layers or any(entry not in (0, 1) for entry in listed):
        raise ConfigError(
            f"{config.where}: no_rope_layers={shown(list(listed))} must have a 1 for each of num_hidden_layers="
            f"{num_layers} that rotates, and a 0 for each that does not"
        )
    return tuple(entry == 1 for entry in listed[:num_layers])


SMOLLM3 = Family(
    "smollm3",
    ("SmolLM3ForCausalLM",),
    read_smollm3,
    # max_window_layers is Qwen's and means nothing here; on pretraining_tp see Llama.
    frozenset({"max_window_layers", "pretraining_tp"}),
)
