from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.errors import ConfigError
from jitmk.model.spec import ModelSpec
from jitmk.program.configs import MAX_GROUP, AttentionConfig
from jitmk.program.isa import OPERANDS
from jitmk.program.lowering import lower
from jitmk.program.program import BufferKind
from jitmk.program.weights import plan_weights
from jitmk.schedule.verify import verify_program
from tests.support.tiny import tiny_spec


def test_phases_of_a_layer() -> None:
    names = [phase.name for phase in lower(tiny_spec(num_layers=1)).phases]
    layer = ["layers.0." + name for name in ("qkv", "attention", "o_proj", "gate_up", "down")]
    assert names == ["embed", *layer, "lm_head", "sample"]


def test_splits_add_a_phase_that_merges() -> None:
    program = lower(tiny_spec(num_layers=1), splits=3)
    names = [phase.name for phase in program.phases]
    assert names.index("layers.0.attention_reduce") == names.index("layers.0.attention") + 1
    attention = program.phases[names.index("layers.0.attention")]
    assert attention.units == 2 * 3, "two key/value heads, three splits"
    assert attention.buffers["output"].kind is BufferKind.FP32


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    kv_heads = draw(st.integers(1, 5))
    return tiny_spec(
        vocab_size=draw(st.integers(1, 300)),
        hidden_size=16 * draw(st.integers(1, 12)),
        intermediate_size=16 * draw(st.integers(1, 20)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=kv_heads * draw(st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 12, 16))),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((64, 80, 96, 128, 256))),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        o_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
    )


@settings(max_examples=40, deadline=None)
@given(specs(), st.sampled_from((1, 2, 5, 16)))
def test_every_program_is_sound(spec: ModelSpec, splits: int) -> None:
    program = lower(spec, splits)
    verify_program(program)
    plan = plan_weights(spec)
    for phase in program.phases:
        assert set(phase.buffers) <= set(OPERANDS[phase.variant.opcode])
        assert phase.weights is None or phase.weights in plan.matrices
        assert set(phase.vectors.values()) <= set(plan.vectors)
        layout = getattr(phase.variant.config, "layout", None)
        if layout is not None and phase.weights is not None:
            assert plan.matrices[phase.weights].layout == layout
            if "bias" in phase.vectors:
                assert plan.vectors[phase.vectors["bias"]].values == layout.rows


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6))
def test_head_groups_cover_the_heads(ratio: int, kv_heads: int) -> None:
    program = lower(tiny_spec(num_layers=1, num_heads=ratio * kv_heads, num_kv_heads=kv_heads))
    config = next(v.config for v in program.variants if isinstance(v.config, AttentionConfig))
    heads = [head for group in range(config.groups) for head in config.group_heads(group)]
    assert heads == list(range(ratio * kv_heads))
    for group in range(config.groups):
        of_group = config.group_heads(group)
        assert 1 <= len(of_group) <= MAX_GROUP
        assert {head // ratio for head in of_group} == {config.group_kv_head(group)}


def test_layers_share_their_code() -> None:
    assert len(lower(tiny_spec(num_layers=5)).variants) == len(lower(tiny_spec(num_layers=1)).variants)


@pytest.mark.parametrize("arguments", [{"splits": 0}, {"splits": -1}, {"tokens": 0}, {"tokens": 2}])
def test_what_is_not_supported_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        lower(tiny_spec(), **arguments)
