"""Rope tables against transformers' LlamaRotaryEmbedding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jitmk.model.families import spec_from_config
from jitmk.model.rope import inverse_frequencies, rope_table
from jitmk.model.spec import RopeKind, RopeSpec
from tests.unit.model.configs import llama_config

FP32_ROUNDINGS = 4 * 2.0**-24
"""Relative error that a frequency may have: a power and a division, rounded once or twice each."""


def tolerance(last_position: int) -> float:
    """What `FP32_ROUNDINGS` of a frequency (at most 1) makes of cos and sin at a position."""
    return FP32_ROUNDINGS * max(last_position, 1)


@st.composite
def rope_objects(draw: st.DrawFn, head_dim: int) -> dict[str, Any]:
    """A rope object of any kind, without its theta."""
    kind = draw(st.sampled_from([kind.value for kind in RopeKind]))
    values: dict[str, Any] = {"rope_type": kind}
    if kind == "default":
        return values
    values["factor"] = draw(st.floats(1, 64))
    if kind == "longrope":
        for key in ("short_factor", "long_factor"):
            # A list is drawn by its ends: what matters is that its numbers differ.
            low, high = draw(st.floats(0.5, 4)), draw(st.floats(4, 64))
            values[key] = torch.linspace(low, high, head_dim // 2).tolist()
        if draw(st.booleans()):
            values["attention_factor"] = draw(st.floats(0.5, 2))
        if draw(st.booleans()):
            del values["factor"]
    if kind == "llama3":
        low = draw(st.floats(0.5, 2))
        values |= {"low_freq_factor": low, "high_freq_factor": low * draw(st.floats(1.5, 8))}
    if kind in ("llama3", "yarn", "longrope") and draw(st.booleans()):
        values["original_max_position_embeddings"] = draw(st.integers(16, 4096))
    if kind == "yarn":
        optional = {
            "attention_factor": st.floats(0.5, 2),
            "beta_fast": st.floats(4, 64),
            "beta_slow": st.floats(0.25, 4),
            "mscale": st.floats(0, 2),
            "mscale_all_dim": st.floats(0, 2),
            "truncate": st.booleans(),
        }
        values |= {key: draw(value) for key, value in optional.items() if draw(st.booleans())}
    return values


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A Llama config with any rope, in either spelling."""
    head_dim = draw(st.sampled_from([64, 80, 96, 128, 256]))
    rope, theta = draw(rope_objects(head_dim)), draw(st.floats(100, 1e6))
    config = llama_config(
        head_dim=head_dim,
        max_position_embeddings=draw(st.integers(16, 512)),
        rope_theta=None,
    )
    if draw(st.booleans()):
        return config | {"rope_parameters": rope | {"rope_theta": theta}}
    if draw(st.booleans()):
        rope = {("type" if key == "rope_type" else key): value for key, value in rope.items()}
    return config | {"rope_theta": theta, "rope_scaling": rope}


VERSION_4 = int(transformers.__version__.split(".")[0]) < 5


def their_module(config: dict[str, Any]) -> LlamaRotaryEmbedding:
    """transformers' embedding for a config; 4.x knows the old spelling only."""
    config = copy.deepcopy(config)
    if VERSION_4 and "rope_parameters" in config:
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    return LlamaRotaryEmbedding(LlamaConfig(**config))


def expected(module: LlamaRotaryEmbedding, positions: range) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' cos and sin, without the copy for the second half of the head."""
    cos, sin = module(torch.zeros(1), torch.arange(positions.start, positions.stop)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


@pytest.mark.skipif(VERSION_4, reason="transformers 4 reads some keys of YaRN and Llama 3 ropes differently")
@pytest.mark.filterwarnings("ignore:.*factor=")  # random YaRN configs seldom agree with themselves
@settings(deadline=None, max_examples=150)
@given(configs(), st.integers(1, 600))
def test_prefill_and_decode_agree_with_transformers(config: dict[str, Any], prompt_length: int) -> None:
    rope = spec_from_config(config).spec.ropes[0]
    module = their_module(config)
    ours = rope_table(rope, range(prompt_length), prompt_length)
    bound = tolerance(prompt_length) * max(1.0, rope.attention_factor)
    torch.testing.assert_close(ours, expected(module, range(prompt_length)), rtol=0, atol=bound)
    decode = range(prompt_length, prompt_length + 4)
    ours = rope_table(rope, decode, prompt_length)
    for row, position in enumerate(decode):
        cos, sin = expected(module, range(position, position + 1))
        bound = tolerance(position) * max(1.0, rope.attention_factor)
        torch.testing.assert_close((ours[0][row], ours[1][row]), (cos[0], sin[0]), rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn", "longrope"])
def test_static_kinds_are_bit_exact_at_long_contexts(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 500000.0}
    if kind != "default":
        rope["factor"] = 32.0
    if kind in ("llama3", "yarn", "longrope"):
        rope["original_max_position_embeddings"] = 8192
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 32, "long_factor": [1.0 + i / 3 for i in range(32)]}
    config = llama_config(rope_theta=None, rope_parameters=rope, max_position_embeddings=262144)
    positions = range(131000, 131072)
    ours = rope_table(spec_from_config(config).spec.ropes[0], positions, 0)
    theirs = expected(their_module(config), positions)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_dynamic_rope_follows_the_length() -> None:
    rope = RopeSpec(RopeKind.DYNAMIC, 10000.0, 64, factor=2.0, original_max_positions=32)
    short, long = rope_table(rope, range(32), 32)[0], rope_table(rope, range(32), 48)[0]
    plain = rope_table(RopeSpec(RopeKind.DEFAULT, 10000.0, 64), range(64), 0)[0]
    assert torch.equal(short, plain[:32])
    assert not torch.equal(long, plain[:32])
    decode = rope_table(rope, range(64), 0)[0]
    assert torch.equal(decode[:32], plain[:32])
    for position in (32, 63):
        alone = rope_table(rope, range(position, position + 1), 0)[0][0]
        as_prompt = rope_table(rope, range(position + 1), position + 1)[0][position]
        torch.testing.assert_close(decode[position], alone, rtol=0, atol=tolerance(position))
        torch.testing.assert_close(alone, as_prompt, rtol=0, atol=tolerance(position))


def test_positions_may_be_a_tensor_in_any_order() -> None:
    rope = RopeSpec(RopeKind.LINEAR, 10000.0, 96, factor=3.0)
    cos, sin = rope_table(rope, torch.tensor([5, 0, 2], dtype=torch.int32), 6)
    table = rope_table(rope, range(6), 6)
    assert cos.dtype == torch.float32 and cos.shape == (3, 48)
    assert torch.equal(cos, table[0][[5, 0, 2]]) and torch.equal(sin, table[1][[5, 0, 2]])


def test_longrope_switches_at_the_pretrained_context() -> None:
    short, long = (1.0, 2.0), (3.0, 5.0)
    rope = RopeSpec(RopeKind.LONGROPE, 10000.0, 4, original_max_positions=8, short_factors=short, long_factors=long)
    frequencies = torch.tensor([1.0, 0.01])
    positions = torch.arange(12)[:, None]
    of_short = (positions * (frequencies / torch.tensor(short))).cos()
    of_long = (positions * (frequencies / torch.tensor(long))).cos()
    decode = rope_table(rope, range(12), 0)[0]  # row p is for a sequence of p + 1 tokens
    torch.testing.assert_close(decode, torch.cat([of_short[:8], of_long[8:]]))
    torch.testing.assert_close(rope_table(rope, range(8), 8)[0], of_short[:8])
    torch.testing.assert_close(rope_table(rope, range(9), 9)[0], of_long[:9])
    torch.testing.assert_close(inverse_frequencies(rope), frequencies / torch.tensor(short))


def test_linear_rope_divides_the_frequencies() -> None:
    plain = inverse_frequencies(RopeSpec(RopeKind.DEFAULT, 10000.0, 64))
    assert torch.equal(inverse_frequencies(RopeSpec(RopeKind.LINEAR, 10000.0, 64, factor=4.0)), plain / 4)
