"""Phi3ForCausalLM: Phi-3, Phi-3.5 and Phi-4, mini ones and others. Stacked projections, partial rotation, LongRoPE."""

from __future__ import annotations

from dataclasses import replace

from jitmk.model.families.base import Family, LoadedFamily
from jitmk.model.families.config_reader import ConfigReader
from jitmk.model.families.decoder import Defaults, loaded, read_decoder, read_window
from jitmk.model.families.names import LAYER, LLAMA_NAMES, stacked, tensor_refs
from jitmk.model.families.rope_config import RopeRules
from jitmk.model.spec import LayerSpec, Role, RopeKind

_ROPE = RopeRules(
    partial=True,
    # The first checkpoints called LongRoPE so.
    renamed={"su": RopeKind.LONGROPE, "yarn": RopeKind.LONGROPE},
    original_positions=4096,
)
_DEFAULTS = Defaults(max_positions=4096, norm_eps=1e-5, rope=_ROPE)


def read_phi3(config: ConfigReader) -> LoadedFamily:
    """Reads a Phi3ForCausalLM config. Raises as `read_decoder`."""
    spec = read_decoder(config, "phi3", _DEFAULTS)
    # Other values are of models with blocks of sparse attention, which this architecture does not have.
    config.refuse_unless("full_attn_mod", 1, reason="every layer of the models that jitmk runs attends to everything")
    config.refuse_unless("interpolate_factor", 1, reason="jitmk extends contexts by what the rope object says")
    spec = replace(spec, layers=(LayerSpec(window=read_window(config)),) * spec.num_layers)
    tensors = tensor_refs(spec, LLAMA_NAMES)
    for layer in range(spec.num_layers):
        tensors |= stacked(spec, layer, (Role.Q, Role.K, Role.V), LAYER + "self_attn.qkv_proj.weight")
        tensors |= stacked(spec, layer, (Role.GATE, Role.UP), LAYER + "mlp.gate_up_proj.weight")
    return loaded(config, spec, tensors)


PHI3 = Family("phi3", ("Phi3ForCausalLM",), read_phi3)
