from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitmk.errors import ConfigError
from jitmk.model.spec import ModelSpec, NormKind
from jitmk.program.configs import (
    LSE_WORDS,
    MAX_GROUP,
    MERGED_COLUMNS,
    MERGED_SPLITS,
    AttentionConfig,
    Epilogue,
    MatvecConfig,
    NormConfig,
    Prologue,
)
from jitmk.program.fusion import Fusion
from jitmk.program.isa import NO_OPERAND, OPERANDS
from jitmk.program.lowering import lower
from jitmk.program.program import BufferKind, Phase, Program, word_spread
from jitmk.program.rope_layout import rope_offset
from jitmk.program.weights import plan_weights
from jitmk.schedule.verify import verify_program
from tests.support.features import FEATURES, any_fusions, any_specs, feature_spec
from tests.support.phases import device_spread
from tests.support.programs import phase_index
from tests.support.tiny import tiny_spec


def test_phases_of_a_layer() -> None:
    names = [phase.name for phase in lower(tiny_spec(num_layers=1)).phases]
    layer = ["layers.0." + name for name in ("qkv", "attention", "o_proj", "gate_up", "down")]
    assert names == ["embed", *layer, "lm_head", "sample"]


@pytest.mark.parametrize(("splits", "fusion"), [(3, Fusion(merge=False)), (MERGED_SPLITS + 1, Fusion())])
def test_splits_add_a_phase_that_merges(splits: int, fusion: Fusion) -> None:
    spec = tiny_spec(num_layers=1)
    program = lower(spec, splits, fused=fusion)
    names = [phase.name for phase in program.phases]
    assert names.index("layers.0.attention_reduce") == names.index("layers.0.attention") + 1
    attention, reduce = (phase_of(program, f"layers.0.attention{suffix}") for suffix in ("", "_reduce"))
    assert attention.units == 2 * splits, "of two key/value heads"
    one = phase_of(lower(spec, fused=fusion), "layers.0.attention")
    assert attention.variant == one.variant, "the same code as for one split"
    partial, lse = attention.buffers["output"], attention.buffers["lse_out"]
    assert (partial.kind, partial.values, partial.copies) == (BufferKind.BF16, splits * spec.attention_size, 1)
    assert (lse.kind, lse.values, lse.copies) == (BufferKind.FP32, splits * spec.num_heads * LSE_WORDS, 1)
    assert (reduce.buffers["input"], reduce.buffers["lse"]) == (partial, lse)
    assert reduce.buffers["output"] == phase_of(program, "layers.0.o_proj").buffers["input"]


@pytest.mark.parametrize("splits", [2, MERGED_SPLITS])
def test_the_projection_behind_attention_merges_a_few_splits(splits: int) -> None:
    spec = tiny_spec(num_layers=1)
    program = lower(spec, splits)
    assert [phase.name for phase in program.phases] == [phase.name for phase in lower(spec).phases]
    attention, o_proj = phase_of(program, "layers.0.attention"), phase_of(program, "layers.0.o_proj")
    assert (o_proj.buffers["input"], o_proj.buffers["lse"]) == (
        attention.buffers["output"],
        attention.buffers["lse_out"],
    )
    assert o_proj.splits == splits and o_proj.buffers["input"].copies == o_proj.buffers["lse"].copies == 2
    config = o_proj.variant.config
    assert isinstance(config, MatvecConfig) and config.prologue is Prologue.MERGE
    assert (config.columns, config.heads) == (spec.attention_size, spec.num_heads)


@pytest.mark.parametrize(("head_dim", "merged"), [(MERGED_COLUMNS // 4, True), (MERGED_COLUMNS // 4 + 16, False)])
def test_splits_of_more_heads_than_its_registers_hold_have_a_phase(head_dim: int, merged: bool) -> None:
    names = [phase.name for phase in lower(tiny_spec(head_dim=head_dim, num_heads=4), splits=2).phases]
    assert ("layers.0.attention_reduce" not in names) == merged


def layer_phases(name: str, layer: int = 1, **arguments: Any) -> list[str]:
    """The phases of a layer of a feature's program, in order."""
    prefix = f"layers.{layer}."
    names = [phase.name for phase in lower(feature_spec(name), **arguments).phases]
    return [phase.removeprefix(prefix) for phase in names if phase.startswith(prefix)]


PHASES = {
    "sandwich": ["qkv", "attention", "o_proj", "gate_up", "down"],
    "post-norm": ["qkv", "q_norm", "k_norm", "attention", "o_proj", "gate_up", "down"],
    "learned-positions": ["qkv", "attention", "o_proj", "up", "down"],
    "multipliers": ["qkv", "attention", "o_proj", "gate_up", "down"],
    "parallel": ["qkv", "gate_up", "q_norm", "k_norm", "attention", "o_proj", "down"],
}


@pytest.mark.parametrize("name", PHASES)
def test_phases_of_a_fused_layer(name: str) -> None:
    assert layer_phases(name) == PHASES[name]


def test_a_sandwich_publishes_the_residual_in_the_projection_that_makes_it_for_itself() -> None:
    program = lower(feature_spec("sandwich"))
    writers = {phase.buffers["residual_out"].name: phase for phase in program.phases if "residual_out" in phase.buffers}
    assert writers["layers.0.mlp_add.residual"].name == "layers.1.qkv"
    assert writers["layers.0.attention_add.residual"].name == "layers.0.gate_up"
    assert "layers.1.mlp_add.residual" not in writers, "nobody reads the residual behind the last block"
    for phase in writers.values():
        parts = [span for unit in range(phase.units) for span in phase.writes(unit) if span.operand == "residual_out"]
        assert [span.begin for span in parts] == [0, *(span.end for span in parts[:-1])]
        assert parts[-1].end == phase.buffers["residual_out"].values and all(s.begin < s.end for s in parts)


def test_phases_of_an_unfused_layer() -> None:
    own = ["qkv", "q_norm", "k_norm", "rope", "value_copy", "kv_append", "attention", "o_proj"]
    mlp = ["gate_up", "activation", "down", "mlp_add"]
    assert layer_phases("two-ropes", fused=False) == ["attention_norm", *own, "attention_add", "mlp_norm", *mlp]
    assert layer_phases("parallel", fused=False) == [
        "attention_norm",
        "qkv",
        "gate_up",
        "activation",
        *own[1:],
        "down",
        "block_add",
        "mlp_add",
    ]


@pytest.mark.parametrize("name", FEATURES)
def test_unfused_matvecs_only_multiply(name: str) -> None:
    program = lower(feature_spec(name), fused=False)
    for variant in program.variants:
        if isinstance(variant.config, MatvecConfig):
            assert variant.config.epilogue in (Epilogue.STORE, Epilogue.LOGITS)
            assert variant.config.prologue is Prologue.NONE and variant.config.post is None
        if isinstance(variant.config, AttentionConfig):
            assert not variant.config.append and variant.config.rotary_dim == 0 and variant.config.qk_norm is None


def phase_of(program: Program, name: str) -> Phase:
    return program.phases[phase_index(program, name)]


def test_layers_differ_in_operands_and_share_code() -> None:
    program = lower(feature_spec("sandwich"))
    first, second = (phase_of(program, f"layers.{layer}.attention") for layer in range(2))
    assert first.variant == second.variant
    assert (first.numbers["window"], second.numbers["window"]) == (7, 0)
    config = first.variant.config
    assert isinstance(config, AttentionConfig) and config.window and config.soft_cap == 2.0 and config.scale == 0.1


def test_layers_name_their_rope() -> None:
    spec = feature_spec("two-ropes")
    program = lower(spec)
    phases = [phase_of(program, f"layers.{layer}.attention") for layer in range(3)]
    assert [phase.numbers["rope"] for phase in phases] == [rope_offset(spec, 1), rope_offset(spec, 0), NO_OPERAND]
    assert phases[1].variant == phases[2].variant, "a layer without rotation runs the code of those with it"
    dims = [phase.variant.config.rotary_dim for phase in phases if isinstance(phase.variant.config, AttentionConfig)]
    assert dims == [32, 64, 64]


def test_prologues_and_epilogues_say_what_they_do() -> None:
    program = lower(feature_spec("layer-post-norm"))
    gate_up, head = phase_of(program, "layers.0.gate_up"), phase_of(program, "lm_head")
    for phase, norm, post in (
        (gate_up, "layers.0.mlp_norm", "layers.0.attention_post_norm"),
        (head, "final_norm", "layers.1.mlp_post_norm"),
    ):
        config = phase.variant.config
        assert isinstance(config, MatvecConfig) and config.prologue is Prologue.LAYER
        assert config.post is NormKind.LAYER and config.post_bias and config.norm_bias and config.post_scale == 0.5
        assert (config.input_copies, config.residual_copies) == (2, 2)
        assert {name: phase.vectors[name] for name in ("norm", "norm_bias", "post_norm", "post_norm_bias")} == {
            "norm": norm,
            "norm_bias": norm + "_bias",
            "post_norm": post,
            "post_norm_bias": post + "_bias",
        }
    granite = lower(feature_spec("multipliers"))
    for name, epilogue, scale in (("layers.0.o_proj", Epilogue.RESIDUAL, 0.25), ("lm_head", Epilogue.LOGITS, 0.5)):
        config = phase_of(granite, name).variant.config
        assert isinstance(config, MatvecConfig) and (config.epilogue, config.scale) == (epilogue, scale)


def test_short_rows_are_a_warps_own() -> None:
    for hidden, own in ((1024, True), (1040, False)):
        program = lower(tiny_spec(hidden_size=hidden))
        configs = {name: matvec_of(program, name) for name in ("qkv", "o_proj", "gate_up", "down")}
        assert {name for name, config in configs.items() if config.own_units} == ({"qkv", "gate_up"} if own else set())
        assert {name for name, config in configs.items() if config.behind_own_units} == ({"down"} if own else set())
        assert not program.phases[-2].variant.config.own_units  # type: ignore[union-attr]


def matvec_of(program: Program, name: str) -> MatvecConfig:
    """The config of a matvec of the second layer."""
    config = phase_of(program, f"layers.1.{name}").variant.config
    assert isinstance(config, MatvecConfig)
    return config


def test_a_parallel_block_publishes_no_sum_that_nobody_reads() -> None:
    program = lower(feature_spec("parallel"))
    o_proj, down = (phase_of(program, f"layers.0.{name}") for name in ("o_proj", "down"))
    assert "output" not in o_proj.buffers and "output" in down.buffers
    assert down.buffers["residual_in"] == o_proj.buffers["residual_out"]
    assert phase_of(program, "layers.0.qkv").buffers["input"] == phase_of(program, "layers.0.gate_up").buffers["input"]


@settings(max_examples=40, deadline=None)
@given(any_specs(), any_fusions(), st.sampled_from((1, 3, 5)))
def test_any_combination_is_sound(spec: ModelSpec, fusion: Fusion, splits: int) -> None:
    program, plan = lower(spec, splits, fused=fusion), plan_weights(spec)
    verify_program(program)
    for phase in program.phases:
        assert set(phase.vectors.values()) <= set(plan.vectors)
        assert set(phase.matrices.values()) <= set(plan.matrices)
        operands = OPERANDS[phase.variant.opcode]
        assert set(phase.buffers) | set(phase.vectors) | set(phase.matrices) | set(phase.numbers) <= set(operands)
    used = [name for phase in program.phases for name in (*phase.vectors.values(), *phase.matrices.values())]
    assert set(plan.vectors) | set(plan.matrices) == set(used), "every weight has a reader"


@settings(max_examples=40, deadline=None)
@given(any_specs(), any_fusions(), st.sampled_from((1, 3, 5)))
def test_configs_know_the_copies_of_their_buffers(spec: ModelSpec, fusion: Fusion, splits: int) -> None:
    """Device code works out from its config alone where the copies of a buffer lie."""
    for phase in lower(spec, splits, fused=fusion).phases:
        config, buffers = phase.variant.config, phase.buffers
        output = buffers.get("output")
        if isinstance(config, AttentionConfig) and phase.splits > 1:
            copies = config.output_copies if config.merged and phase.splits <= MERGED_SPLITS else 1
            assert output is not None and output.copies == buffers["lse_out"].copies == copies, phase.name
        elif hasattr(config, "output_copies"):
            assert config.output_copies == (0 if output is None else output.copies), phase.name
        else:
            assert output is None or output.copies == 1, phase.name
        if "residual_out" in buffers:
            assert getattr(config, "residual_copies", None) == buffers["residual_out"].copies, phase.name
        if isinstance(config, MatvecConfig):
            assert config.input_copies == buffers["input"].copies, phase.name
            if config.post is not None:
                assert config.residual_copies == buffers["residual_in"].copies, phase.name
        if isinstance(config, NormConfig) and config.output_copies > 1:
            assert output is not None and output.values == config.groups * config.group


@settings(max_examples=40, deadline=None)
@given(any_specs(), any_fusions(), st.sampled_from((1, 3)), st.booleans())
def test_device_code_knows_how_far_sectors_are_apart(spec: ModelSpec, fusion: Fusion, splits: int, wide: bool) -> None:
    """From the kernel's constant, but for what attention writes and for the inputs of projections."""
    spec = replace(spec, hidden_size=2048) if wide else spec
    spread = word_spread(spec.hidden_size)
    assert spread == (1 if wide else 4)
    for phase in lower(spec, splits, fused=fusion).phases:
        for operand, buffer in phase.buffers.items():
            assert buffer.spread == device_spread(phase, operand, spread), (phase.name, operand)


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
