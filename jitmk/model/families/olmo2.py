"""Olmo2ForCausalLM: norms behind the blocks and none before, and norms over a token's queries and over its keys."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import Defaults, loaded, read_decoder
from jitmk.model.families.names import LAYER, LLAMA_NAMES, QK_NORM_NAMES, tensor_refs
from jitmk.model.spec import NormKind, QkNorm, QkNormScope, Role

_NAMES = {
    **LLAMA_NAMES,
    **QK_NORM_NAMES,
    Role.ATTENTION_POST_NORM: LAYER + "post_attention_layernorm.weight",
    Role.MLP_POST_NORM: LAYER + "post_feedforward_layernorm.weight",
}


def read_olmo2(config: ConfigReader) -> LoadedFamily:
    """Reads an Olmo2ForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "olmo2", Defaults(norm_eps=1e-5))
    attention_bias = config.flag("attention_bias")
    spec = replace(
        spec,
        pre_norm=False,
        post_norm=True,
        qk_norm=QkNorm(NormKind.RMS, spec.norm.eps, QkNormScope.PROJECTION),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
    )
    return loaded(config, spec, tensor_refs(spec, _NAMES))


OLMO2 = Family("olmo2", ("Olmo2ForCausalLM",), read_olmo2)
