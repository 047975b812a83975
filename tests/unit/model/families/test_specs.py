"""Public models' configs, read: whole specs as the models' papers and cards have them, and their numbers of weights."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.shapes import CONFIGS
from jitmk.model.families import spec_from_config
from jitmk.model.spec import (
    Activation,
    LayerSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    QkNorm,
    QkNormScope,
    RopeKind,
    RopeSpec,
)
from tests.unit.model import public_configs


def rms(eps: float, offset: float = 0.0) -> NormSpec:
    return NormSpec(NormKind.RMS, eps, offset)


def plain_rope(theta: float, dims: int) -> RopeSpec:
    return RopeSpec(RopeKind.DEFAULT, theta, dims)


def model(
    family: str,
    sizes: tuple[int, int, int, int, int, int, int],
    norm: NormSpec,
    ropes: tuple[RopeSpec, ...],
    max_positions: int,
    *,
    tied: bool,
    **more: Any,
) -> ModelSpec:
    """A spec; `sizes` are vocabulary, hidden, intermediate, layers, heads, key/value heads and dimensions of a head."""
    vocab, hidden, intermediate, layers, heads, kv_heads, head_dim = sizes
    usual: dict[str, Any] = {
        "layers": (LayerSpec(),) * layers,
        "attention_scale": head_dim**-0.5,
        "activation": Activation.SILU,
    }
    return ModelSpec(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm=norm,
        ropes=ropes,
        max_positions=max_positions,
        tied_embeddings=tied,
        **(usual | more),
    )


QWEN_3_NORM = QkNorm(NormKind.RMS, 1e-6, QkNormScope.HEAD)
SLIDING, FULL = LayerSpec(512, rope=0), LayerSpec(None, rope=1)

EXPECTED: dict[str, tuple[dict[str, Any], ModelSpec, int]] = {
    "qwen2.5-7b": (
        CONFIGS["qwen2.5-7b"],
        model(
            "qwen2",
            (152064, 3584, 18944, 28, 28, 4, 128),
            rms(1e-6),
            (plain_rope(1e6, 128),),
            131072,
            tied=False,
            qkv_bias=True,
        ),
        7_615_616_512,
    ),
    "qwen3-0.6b": (
        CONFIGS["qwen3-0.6b"],
        model(
            "qwen3",
            (151936, 1024, 3072, 28, 16, 8, 128),
            rms(1e-6),
            (plain_rope(1e6, 128),),
            40960,
            tied=True,
            qk_norm=QWEN_3_NORM,
        ),
        596_049_920,
    ),
    "mistral-7b": (
        CONFIGS["mistral-7b"],
        model(
            "mistral",
            (32000, 4096, 14336, 32, 32, 8, 128),
            rms(1e-5),
            (plain_rope(1e4, 128),),
            32768,
            tied=False,
            layers=(LayerSpec(window=4096),) * 32,
        ),
        7_241_732_096,
    ),
    "phi-4-mini": (
        CONFIGS["phi-4-mini"],
        model(
            "phi3",
            (200064, 3072, 8192, 32, 24, 8, 128),
            rms(1e-5),
            (
                RopeSpec(
                    RopeKind.LONGROPE,
                    1e4,
                    96,
                    original_max_positions=4096,
                    # sqrt(1 + ln(131072 / 4096) / ln(4096)), of powers of two
                    attention_factor=math.sqrt(1 + 5 / 12),
                    short_factors=(1.0,) * 48,
                    long_factors=tuple(map(float, CONFIGS["phi-4-mini"]["rope_scaling"]["long_factor"])),
                ),
            ),
            131072,
            tied=True,
        ),
        3_836_021_760,
    ),
    "phi-3-mini-4k": (
        public_configs.PHI_3_MINI_4K,
        model(
            "phi3",
            (32064, 3072, 8192, 32, 32, 32, 96),
            rms(1e-5),
            (plain_rope(1e4, 96),),
            4096,
            tied=False,
            layers=(LayerSpec(window=2047),) * 32,
        ),
        3_821_079_552,
    ),
    "gemma-2-2b": (
        CONFIGS["gemma-2-2b"],
        model(
            "gemma2",
            (256000, 2304, 9216, 26, 8, 4, 256),
            rms(1e-6, offset=1.0),
            (plain_rope(1e4, 256),),
            8192,
            tied=True,
            post_norm=True,
            layers=(LayerSpec(window=4096), LayerSpec()) * 13,
            attention_scale=1 / 16,
            attention_soft_cap=50.0,
            logit_soft_cap=30.0,
            embedding_scale=48.0,
            activation=Activation.GELU_TANH,
        ),
        2_614_341_888,
    ),
    "gemma-3-1b": (
        public_configs.GEMMA_3_1B,
        model(
            "gemma3_text",
            (262144, 1152, 6912, 26, 4, 1, 256),
            rms(1e-6, offset=1.0),
            (plain_rope(1e4, 256), plain_rope(1e6, 256)),
            32768,
            tied=True,
            post_norm=True,
            layers=((SLIDING,) * 5 + (FULL,)) * 4 + (SLIDING,) * 2,
            qk_norm=QkNorm(NormKind.RMS, 1e-6, QkNormScope.HEAD, offset=1.0),
            attention_scale=1 / 16,
            embedding_scale=1152**0.5,
            activation=Activation.GELU_TANH,
        ),
        999_885_952,
    ),
    "gpt2": (
        CONFIGS["gpt2"],
        model(
            "gpt2",
            (50257, 768, 3072, 12, 12, 12, 64),
            NormSpec(NormKind.LAYER, 1e-5, bias=True),
            (),
            1024,
            tied=True,
            learned_positions=True,
            layers=(LayerSpec(rope=None),) * 12,
            activation=Activation.GELU_TANH,
            gated=False,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
        ),
        124_439_808,
    ),
    "olmo-2-1b": (
        public_configs.OLMO_2_1B,
        model(
            "olmo2",
            (100352, 2048, 8192, 16, 16, 16, 128),
            rms(1e-6),
            (plain_rope(5e5, 128),),
            4096,
            tied=False,
            pre_norm=False,
            post_norm=True,
            qk_norm=QkNorm(NormKind.RMS, 1e-6, QkNormScope.PROJECTION),
        ),
        1_484_916_736,
    ),
    "granite-3-2b": (
        public_configs.GRANITE_3_2B,
        model(
            "granite",
            (49155, 2048, 8192, 40, 32, 8, 64),
            rms(1e-5),
            (plain_rope(1e4, 64),),
            4096,
            tied=True,
            attention_scale=1 / 64,
            embedding_scale=12.0,
            residual_scale=0.22,
            logit_scale=1 / 8,
        ),
        2_533_531_648,
    ),
    "starcoder-2-3b": (
        public_configs.STARCODER_2_3B,
        model(
            "starcoder2",
            (49152, 3072, 12288, 30, 24, 2, 128),
            NormSpec(NormKind.LAYER, 1e-5, bias=True),
            (plain_rope(999999.4420358813, 128),),
            16384,
            tied=True,
            layers=(LayerSpec(window=4096),) * 30,
            activation=Activation.GELU_TANH,
            gated=False,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
        ),
        3_030_371_328,
    ),
    "smollm-3-3b": (
        public_configs.SMOLLM_3_3B,
        model(
            "smollm3",
            (128256, 2048, 11008, 36, 16, 4, 128),
            rms(1e-6),
            (plain_rope(5e6, 128),),
            65536,
            tied=True,
            layers=((LayerSpec(),) * 3 + (LayerSpec(rope=None),)) * 9,
        ),
        3_075_098_624,
    ),
    "command-r": (
        public_configs.COMMAND_R,
        model(
            "cohere",
            (256000, 8192, 22528, 40, 64, 64, 128),
            NormSpec(NormKind.LAYER, 1e-5),
            (plain_rope(8e6, 128),),
            131072,
            tied=True,
            parallel=True,
            logit_scale=1 / 16,
        ),
        34_980_831_232,
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_public_model(name: str) -> None:
    config, expected, parameters = EXPECTED[name]
    spec = spec_from_config(config).spec
    assert spec == expected
    assert spec.parameters == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("qwen2.5-1.5b", 1_543_714_304), ("qwen3-4b", 4_022_468_096), ("qwen3-8b", 8_190_735_360)],
)
def test_weights_of_other_sizes(name: str, parameters: int) -> None:
    assert spec_from_config(CONFIGS[name]).spec.parameters == parameters


def test_a_window_that_the_context_cannot_fill_is_none() -> None:
    cut = spec_from_config(CONFIGS["mistral-7b"], max_seq_len=4096).spec
    assert cut.layers == (LayerSpec(),) * 32
    assert spec_from_config(CONFIGS["mistral-7b"], max_seq_len=4097).spec.layers == (LayerSpec(window=4096),) * 32
