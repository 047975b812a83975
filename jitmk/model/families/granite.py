"""GraniteForCausalLM: a Llama with multipliers."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import Defaults, loaded, read_decoder
from jitmk.model.families.names import LLAMA_NAMES, tensor_refs


def read_granite(config: ConfigReader) -> LoadedFamily:
    """Reads a GraniteForCausalLM config. Raises as `read_decoder`."""

    def multiplier(key: str) -> float:
        return config.number(key, 1.0, minimum=0.0, exclusive=True)

    spec = read_decoder(config, "granite", Defaults())
    attention_bias = config.flag("attention_bias")
    spec = replace(
        spec,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias"),
        attention_scale=multiplier("attention_multiplier"),
        embedding_scale=multiplier("embedding_multiplier"),
        residual_scale=multiplier("residual_multiplier"),
        logit_scale=1 / multiplier("logits_scaling"),
    )
    return loaded(config, spec, tensor_refs(spec, LLAMA_NAMES))


GRANITE = Family("granite", ("GraniteForCausalLM",), read_granite)
