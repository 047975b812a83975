"""LlamaForCausalLM: Llama 1 to 3.3, and the many models that are Llama in all but name."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import Defaults, loaded, read_decoder
from jitmk.model.families.names import LLAMA_NAMES, tensor_refs


def read_llama(config: ConfigReader) -> LoadedFamily:
    """Reads a LlamaForCausalLM config.

    Raises:
        UnsupportedModelError: a setting that jitmk does not run; the message says what it does run.
        ConfigError: a value that is missing or malformed.
    """
    spec = read_decoder(config, "llama", Defaults())
    attention_bias = config.flag("attention_bias")
    spec = replace(spec, qkv_bias=attention_bias, o_bias=attention_bias, mlp_bias=config.flag("mlp_bias"))
    # Checkpoints of Llama 1 and 2 carry the rotary frequencies.
    ignorable = (r"(model\.layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
    return loaded(config, spec, tensor_refs(spec, LLAMA_NAMES), ignorable=ignorable)


LLAMA = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    read=read_llama,
    # pretraining_tp > 1 computes each projection as a sum of slices: the same product, rounded differently.
    harmless=frozenset({"pretraining_tp"}),
)
