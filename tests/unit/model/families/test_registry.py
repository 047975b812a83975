"""From config.json to ModelSpec: what is read, and what is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jitmk.errors import ConfigError, ContextLengthError, UnsupportedModelError
from jitmk.model.families import Family, register_family, registry, spec_from_config, supported_model_types
from jitmk.model.families.llama import LLAMA
from jitmk.model.spec import Role, RopeKind, WeightKey, weight_shapes
from tests.unit.model.configs import llama_config

LLAMA_3_2_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}


def test_the_config_of_llama_3_2_1b() -> None:
    family = spec_from_config(LLAMA_3_2_1B)
    spec = family.spec
    assert (spec.hidden_size, spec.num_layers, spec.num_heads, spec.num_kv_heads) == (2048, 16, 32, 8)
    assert (spec.head_dim, spec.query_group, spec.max_positions) == (64, 4, 131072)
    assert spec.tied_embeddings and not spec.qkv_bias
    assert spec.ropes[0].kind is RopeKind.LLAMA3 and spec.ropes[0].factor == 32 and spec.ropes[0].theta == 500000
    assert spec.parameters == 1_235_814_400
    assert family.dtype == "bfloat16"
    assert family.tensors[WeightKey(Role.DOWN, 3)].name == "model.layers.3.mlp.down_proj.weight"
    assert family.tensors.keys() == weight_shapes(spec).keys()


def test_attention_bias_is_on_all_four_projections() -> None:
    family = spec_from_config(llama_config(attention_bias=True, mlp_bias=True))
    assert family.spec.qkv_bias and family.spec.o_bias and family.spec.mlp_bias
    assert family.tensors[WeightKey(Role.O_BIAS, 1)].name == "model.layers.1.self_attn.o_proj.bias"


def test_defaults_of_old_configs() -> None:
    config = llama_config(num_key_value_heads=None, rope_theta=None, max_position_embeddings=None, rms_norm_eps=None)
    spec = spec_from_config(config).spec
    assert (spec.num_kv_heads, spec.max_positions, spec.norm.eps, spec.ropes[0].theta) == (2, 2048, 1e-6, 10000.0)


def test_head_dim_need_not_divide_hidden_size() -> None:
    assert spec_from_config(llama_config(head_dim=80)).spec.head_dim == 80
    assert spec_from_config(llama_config(head_dim=256, num_attention_heads=3)).spec.attention_size == 768


def test_a_config_without_model_type_is_known_by_its_architecture() -> None:
    assert spec_from_config(llama_config(model_type=None)).spec.family == "llama"


def test_null_counts_as_absent() -> None:
    config = llama_config() | {"rope_scaling": None, "head_dim": None, "quantization_config": None, "strange": None}
    assert spec_from_config(config).spec.head_dim == 64


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_in_both_spellings(key: str) -> None:
    assert spec_from_config(llama_config(**{key: "float16"})).dtype == "float16"
    with pytest.raises(UnsupportedModelError, match=r"float8_e4m3fn.*bfloat16, float16, float32"):
        spec_from_config(llama_config(**{key: "float8_e4m3fn"}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "'bert' is an encoder.*not supported yet.* llama, "),
        ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral' is a mixture of experts: not supported yet"),
        ({"model_type": "deepseek_v3"}, "latent attention"),
        ({"model_type": "mamba2"}, "state-space"),
        ({"model_type": "gemma3", "text_config": {}}, 'a model that sees; .*"gemma3_text", is supported'),
        ({"model_type": "some_new_moe"}, "'some_new_moe' is a mixture of experts"),
        ({"model_type": "new", "num_local_experts": 8}, r"num_local_experts=8.*mixture-of-experts"),
        ({"model_type": "new"}, r"model_type='new'.*llama.*docs/adding-a-model\.md"),
        ({"model_type": "new", "vision_config": {"a": 1}}, r"vision_config.*text decoders"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": 7}, "model_type=7"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification.*LlamaForCausalLM"),
        ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu'.*silu"),
        ({"head_dim": 72}, "head_dim=72.*64, 80, 96, 128, 256"),
        ({"hidden_size": 136, "head_dim": 64}, "hidden_size=136.*multiple of 16"),
        ({"intermediate_size": 200}, "intermediate_size=200.*multiple of 16"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config=.*gptq.*quantised"),
        ({"sliding_window": 4096}, "sliding_window=4096.*will not guess"),
        ({"rope_interleaved": True}, "rope_interleaved=True"),
        ({"logit_scale": 0.5, "residual_multiplier": 2}, "logit_scale=0.5, residual_multiplier=2"),
        (
            {"rope_scaling": {"type": "mrope", "factor": 2.0}},
            "'mrope'.*default, linear, dynamic, llama3, yarn, longrope",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast=3.*'linear'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor=0.25"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 256}},
            "original_max_position_embeddings=256",
        ),
    ],
)
def test_unsupported_settings_are_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        spec_from_config(llama_config(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "128"}, "hidden_size='128' must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"vocab_size": True}, "vocab_size=True"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 64},
            "not a multiple of num_key_value_heads=2",
        ),
        ({"num_attention_heads": 3}, "hidden_size=128 is not a multiple of num_attention_heads=3"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"attention_bias": "yes"}, "attention_bias='yes'"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"model_type": None, "architectures": ["Other"]}, "no model_type"),
        ({"rope_theta": 0}, "rope_theta=0"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear' must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor=0.5"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2}}, "disagree"),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}, "disagree"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}}, "beta_fast"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2}, "original_max_position_embeddings": 128},
            "original_max_position_embeddings=128, but",
        ),
    ],
)
def test_malformed_configs_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        spec_from_config(llama_config(**changes))


def test_settings_that_are_off_or_harmless_are_ignored() -> None:
    config = llama_config(
        sliding_window=0,
        rope_interleaved=False,
        pretraining_tp=2,
        is_llama_config=True,
        id2label={"0": "A"},
        pruned_heads={},
        unsloth_version="2024.9",
    )
    assert spec_from_config(config).spec == spec_from_config(llama_config()).spec


def test_both_rope_spellings_may_stand_side_by_side_when_they_agree() -> None:
    config = llama_config(
        rope_scaling={"type": "linear", "factor": 2.0},
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    )
    assert spec_from_config(config).spec.ropes[0].factor == 2.0


def test_a_yarn_factor_that_disagrees_with_the_contexts_is_used_with_a_warning() -> None:
    rope = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}
    with pytest.warns(UserWarning, match=r"factor=2, but max_position_embeddings=512 is 4 times"):
        assert spec_from_config(llama_config(rope_scaling=rope)).spec.ropes[0].factor == 2.0


def test_max_seq_len_cuts_the_context_and_cannot_extend_it() -> None:
    assert spec_from_config(llama_config(), max_seq_len=100).spec.max_positions == 100
    for wrong in (513, 0, -1, 2.0, True):
        with pytest.raises(ContextLengthError, match="max_seq_len"):
            spec_from_config(llama_config(), max_seq_len=wrong)  # type: ignore[arg-type]


def test_dynamic_rope_may_be_extended_by_its_factor() -> None:
    config = llama_config(rope_scaling={"type": "dynamic", "factor": 2.0})
    assert spec_from_config(config).spec.max_positions == 512
    spec = spec_from_config(config, max_seq_len=1024).spec
    assert (spec.max_positions, spec.ropes[0].original_max_positions) == (1024, 512)
    with pytest.raises(ContextLengthError, match=r"max_seq_len=1025.*1024 tokens"):
        spec_from_config(config, max_seq_len=1025)


def test_a_family_can_be_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    mine = Family("mine", ("MineForCausalLM",), LLAMA.read)
    register_family(mine)
    assert {"llama", "mine"} < set(supported_model_types())
    assert spec_from_config(llama_config(model_type="mine", architectures=["MineForCausalLM"])).spec.num_layers == 2
    with pytest.raises(ConfigError, match="already registered"):
        register_family(replace(mine, architectures=()))
    register_family(replace(mine, architectures=("Other",)), replace=True)


def test_the_readme_lists_every_family() -> None:
    readme = (Path(__file__).parents[4] / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| [^|]+ \| `(\w+)` \|", readme, re.MULTILINE)
    assert tuple(sorted(listed)) == supported_model_types()


def test_a_family_must_say_where_every_tensor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", {})
    register_family(Family("llama", (), lambda config: replace(LLAMA.read(config), tensors={})))
    with pytest.raises(ConfigError, match=r"layers\.0\.q"):
        spec_from_config(llama_config())
