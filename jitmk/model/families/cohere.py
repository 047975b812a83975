"""CohereForCausalLM (Command R, Aya): attention and MLP side by side behind one layer norm without bias, scaled logits,
and rotated pairs that lie next to each other."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families.base import Family, InterleavedPairs, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import Defaults, loaded, read_decoder
from jitmk.model.families.names import LLAMA_NAMES, QK_NORM_NAMES, tensor_refs
from jitmk.model.families.rope_config import RopeRules
from jitmk.model.spec import QK_NORMS, NormKind, NormSpec, QkNorm, QkNormScope, Role

_DEFAULTS = Defaults(
    max_positions=8192, norm_key="layer_norm_eps", norm_eps=1e-5, tied_embeddings=True, rope=RopeRules(theta=5e5)
)
_ROTATED = frozenset({Role.Q, Role.K, Role.Q_BIAS, Role.K_BIAS})


def read_cohere(config: ConfigReader) -> LoadedFamily:
    """Reads a CohereForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "cohere", _DEFAULTS)
    attention_bias = config.flag("attention_bias")
    qk_norm = QkNorm(NormKind.LAYER, spec.norm.eps, QkNormScope.HEAD_WEIGHTS)
    spec = replace(
        spec,
        norm=NormSpec(NormKind.LAYER, spec.norm.eps),
        parallel=True,
        qk_norm=qk_norm if config.flag("use_qk_norm") else None,
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        logit_scale=config.number("logit_scale", 0.0625, minimum=0.0, exclusive=True),
    )
    tensors = tensor_refs(spec, {**LLAMA_NAMES, **QK_NORM_NAMES})
    for key, ref in tensors.items():
        if key.role in _ROTATED | QK_NORMS:
            # Norms of heads have a weight [heads, head_dim].
            order = InterleavedPairs(spec.head_dim, axis=1 if key.role in QK_NORMS else 0)
            tensors[key] = replace(ref, row_order=order)
    return loaded(config, spec, tensors)


COHERE = Family("cohere", ("CohereForCausalLM",), read_cohere, frozenset({"pretraining_tp"}))
