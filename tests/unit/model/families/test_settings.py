"""What each family makes of its own keys: both spellings, absence, null, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.shapes import CONFIGS
from jitmk.errors import ConfigError, UnsupportedModelError
from jitmk.model.families import spec_from_config
from jitmk.model.spec import Activation, LayerSpec, ModelSpec, RopeKind
from tests.unit.model import public_configs

BASES = {
    "mistral": CONFIGS["mistral-7b"],
    "ministral": CONFIGS["mistral-7b"]
    | {"model_type": "ministral", "architectures": ["MinistralForCausalLM"], "num_hidden_layers": 2},
    "qwen2": CONFIGS["qwen2.5-1.5b"],
    "qwen3": CONFIGS["qwen3-0.6b"],
    "phi3": CONFIGS["phi-4-mini"],
    "gemma2": CONFIGS["gemma-2-2b"],
    "gemma3_text": public_configs.GEMMA_3_1B,
    "gpt2": CONFIGS["gpt2"],
    "olmo2": public_configs.OLMO_2_1B,
    "granite": public_configs.GRANITE_3_2B,
    "starcoder2": public_configs.STARCODER_2_3B,
    "smollm3": public_configs.SMOLLM_3_3B,
    "cohere": public_configs.COMMAND_R,
}
ABSENT = object()


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (BASES[family] | changes).items() if value is not ABSENT}


def spec_of(family: str, **changes: Any) -> ModelSpec:
    return spec_from_config(config_of(family, **changes)).spec


def windows(spec: ModelSpec) -> list[int | None]:
    return [layer.window for layer in spec.layers]


@pytest.mark.parametrize(
    "family", ["mistral", "qwen2", "gemma2", "olmo2", "granite", "starcoder2", "smollm3", "cohere"]
)
def test_rope_parameters_say_the_same_as_rope_theta(family: str) -> None:
    theta = BASES[family]["rope_theta"]
    new = {"rope_type": "default", "rope_theta": theta}
    assert spec_of(family, rope_theta=ABSENT, rope_scaling=ABSENT, rope_parameters=new) == spec_of(family)


@pytest.mark.parametrize(
    ("family", "theta"), [("mistral", 1e4), ("smollm3", 2e6), ("cohere", 5e5), ("starcoder2", 1e4), ("qwen3", 1e4)]
)
def test_the_base_without_rope_theta(family: str, theta: float) -> None:
    assert spec_of(family, rope_theta=ABSENT).ropes[0].theta == theta


@pytest.mark.parametrize("family", BASES)
def test_tied_embeddings_can_be_said_or_left_to_the_family(family: str) -> None:
    by_default = family in {"gemma2", "gemma3_text", "gpt2", "starcoder2", "smollm3", "cohere"}
    assert spec_of(family, tie_word_embeddings=ABSENT).tied_embeddings == by_default
    assert spec_of(family, tie_word_embeddings=not by_default).tied_embeddings != by_default


def test_windows_of_mistral() -> None:
    assert windows(spec_of("mistral", sliding_window=None)) == [None] * 32
    assert windows(spec_of("mistral", sliding_window=ABSENT)) == [4096] * 32
    alike = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
    assert windows(spec_of("mistral", **alike)) == [4096] * 2


def test_windows_of_ministral() -> None:
    assert windows(spec_of("ministral")) == [4096, 4096]
    assert windows(spec_of("ministral", sliding_window=None)) == [None, None]
    assert windows(spec_of("ministral", layer_types=["full_attention", "sliding_attention"])) == [None, 4096]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_of_qwen(family: str) -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 100, "num_hidden_layers": 4}
    assert windows(spec_of(family, **sliding, max_window_layers=3)) == [None, None, None, 100]
    assert windows(spec_of(family, **sliding, max_window_layers=0)) == [100] * 4
    listed = ["sliding_attention", "full_attention", "full_attention", "full_attention"]
    assert windows(spec_of(family, **sliding, layer_types=listed)) == [100, None, None, None]
    assert windows(spec_of(family, sliding_window=100)) == [None] * 28  # use_sliding_window is false


def test_windows_of_gemma2() -> None:
    assert windows(spec_of("gemma2", num_hidden_layers=3)) == [4096, None, 4096]
    listed = {"num_hidden_layers": 3, "layer_types": ["full_attention", "full_attention", "sliding_attention"]}
    assert windows(spec_of("gemma2", **listed)) == [None, None, 4096]


def test_caps_of_gemma2_are_there_unless_null() -> None:
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    absent, null = spec_of("gemma2", **dict.fromkeys(caps, ABSENT)), spec_of("gemma2", **dict.fromkeys(caps))
    assert (absent.attention_soft_cap, absent.logit_soft_cap) == (50.0, 30.0)
    assert (null.attention_soft_cap, null.logit_soft_cap) == (None, None)


def test_ropes_of_gemma3_in_both_spellings() -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    old = spec_of("gemma3_text", rope_scaling=scaling)
    nested = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": scaling | {"rope_theta": 1000000.0},
    }
    keys = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern")
    types = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(26)]
    new = spec_of("gemma3_text", **dict.fromkeys(keys, ABSENT), rope_parameters=nested, layer_types=types)
    assert new == old
    assert [(rope.kind, rope.theta) for rope in old.ropes] == [(RopeKind.DEFAULT, 1e4), (RopeKind.LINEAR, 1e6)]
    assert old.ropes[1].factor == 8.0
    assert spec_of("gemma3_text", **dict.fromkeys(keys, ABSENT)).ropes == spec_of("gemma3_text").ropes


def test_gemma3_keeps_only_the_ropes_that_layers_use() -> None:
    spec = spec_of("gemma3_text", num_hidden_layers=2)
    assert [rope.theta for rope in spec.ropes] == [1e4] and spec.layers == (LayerSpec(512, rope=0),) * 2
    alike = spec_of("gemma3_text", num_hidden_layers=6, rope_local_base_freq=1000000)
    assert len(alike.ropes) == 1


def test_longrope_of_phi3_in_both_spellings() -> None:
    old = spec_of("phi3")
    scaling = BASES["phi3"]["rope_scaling"]
    rope = {
        "rope_type": "longrope",
        "short_factor": scaling["short_factor"],
        "long_factor": scaling["long_factor"],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 4096,
    }
    keys = ("rope_theta", "rope_scaling", "partial_rotary_factor")
    assert spec_of("phi3", **dict.fromkeys(keys, ABSENT), rope_parameters=rope) == old
    assert spec_of("phi3", rope_scaling=scaling | {"type": "su"}) == old
    assert spec_of("phi3", original_max_position_embeddings=ABSENT) == old  # 4096 is Phi-3's default
    assert spec_of("phi3", rope_scaling=scaling | {"attention_factor": 1.5}).ropes[0].attention_factor == 1.5


def test_gpt2_without_optional_keys() -> None:
    assert spec_of("gpt2", n_inner=2048).intermediate_size == 2048
    assert spec_of("gpt2", scale_attn_weights=False).attention_scale == 1.0
    assert spec_of("gpt2", activation_function="relu").activation is Activation.RELU
    assert spec_of("gpt2", activation_function="gelu").activation is Activation.GELU
    assert spec_of("gpt2", n_positions=ABSENT, layer_norm_epsilon=ABSENT) == spec_of("gpt2")


def test_biases() -> None:
    for family in ("qwen3", "olmo2", "granite", "smollm3", "cohere", "gemma2", "gemma3_text"):
        spec = spec_of(family, attention_bias=True)
        assert spec.qkv_bias and spec.o_bias and not spec.mlp_bias, family
    assert spec_of("granite", mlp_bias=True).mlp_bias and spec_of("smollm3", mlp_bias=True).mlp_bias
    spec = spec_of("starcoder2", use_bias=False)
    assert not (spec.qkv_bias or spec.o_bias or spec.mlp_bias) and spec.norm.bias


def test_layers_of_smollm3_without_rotation() -> None:
    def rotating(**changes: Any) -> list[bool]:
        spec = spec_of("smollm3", num_hidden_layers=4, layer_types=ABSENT, **changes)
        return [layer.rope is not None for layer in spec.layers]

    assert rotating(no_rope_layers=ABSENT) == [True, True, True, False]
    assert rotating(no_rope_layers=ABSENT, no_rope_layer_interval=2) == [True, False, True, False]
    assert rotating(no_rope_layers=[0, 1, 1, 1, 0, 0]) == [False, True, True, True]
    spec = spec_of("smollm3", num_hidden_layers=4, layer_types=ABSENT, use_sliding_window=True, sliding_window=64)
    assert windows(spec) == [None, None, None, 64]
    assert spec_of("smollm3", no_rope_layers=[0] * 36).ropes == ()


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        (
            "mistral",
            {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
            'sliding_window=4096 and a layer_types that says otherwise.*"ministral"',
        ),
        ("ministral", {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention'.*full_attention and sliding"),
        ("mistral", {"attention_bias": True}, "attention_bias=True"),
        ("qwen2", {"use_mrope": True}, "use_mrope=True"),
        ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [16]}}, "'mrope'"),
        ("qwen2", {"qkv_bias": True}, "qkv_bias=True"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias=True"),
        ("phi3", {"full_attn_mod": 2}, "full_attn_mod=2"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True.*causal"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
        ("gpt2", {"n_head": 24}, "head_dim=32"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("granite", {"shared_intermediate_size": 10}, "shared_intermediate_size=10"),
        ("starcoder2", {"norm_type": "rms_norm"}, "norm_type='rms_norm'.*layer norms"),
        ("starcoder2", {"mlp_type": "gated"}, "mlp_type='gated'"),
        ("cohere", {"hidden_act": "relu2"}, "hidden_act='relu2'"),
    ],
)
def test_what_is_refused_by_name(family: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedModelError, match=says):
        spec_of(family, **changes)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("ministral", {"layer_types": ["full_attention"]}, "layer_types has 1 entries, but num_hidden_layers=2"),
        ("ministral", {"layer_types": ["sliding_attention"] * 2, "sliding_window": None}, "no sliding_window"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0"),
        ("qwen2", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "no sliding_window"),
        ("phi3", {"partial_rotary_factor": 0.5}, "short_factor has 48 numbers, but 64 dimensions"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5 must be at most 1"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [0.0] * 48, "long_factor": [1.0] * 48}},
            "short_factor=.*positive",
        ),
        (
            "phi3",
            {"rope_scaling": BASES["phi3"]["rope_scaling"] | {"original_max_position_embeddings": 8192}},
            "original_max_position_embeddings=4096, but .* 8192",
        ),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_type='default'.*sliding_attention"),
        ("gpt2", {"n_embd": 770}, "n_embd=770 is not a multiple of n_head=12"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling=0.0"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers=.*36"),
        ("smollm3", {"no_rope_layers": "all"}, "no_rope_layers='all' must be a list"),
        ("cohere", {"logit_scale": "big"}, "logit_scale='big'"),
    ],
)
def test_what_is_malformed(family: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        spec_of(family, **changes)
