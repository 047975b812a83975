from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from benchmarks.measure import usable_contexts
from benchmarks.shapes import CONFIGS, FAMILY_MODELS, LLAMAS, model_spec, nearest_llama, step_bytes
from benchmarks.truth import transformers_model
from jitmk.model.checkpoint import stored_shapes
from jitmk.model.families import spec_from_config


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_and_jitmk_read_the_same_model(name: str) -> None:
    theirs = transformers_model(CONFIGS[name], torch.bfloat16, torch.device("meta"))
    family = spec_from_config(CONFIGS[name])
    parameters = dict(theirs.named_parameters())
    assert sum(parameter.numel() for parameter in parameters.values()) == family.spec.parameters
    assert {found: tuple(parameter.shape) for found, parameter in parameters.items()} == stored_shapes(family)


@pytest.mark.parametrize("name", [*LLAMAS, "phi-4-mini"])
def test_transformers_and_jitmk_read_the_same_rope(name: str) -> None:
    from transformers import AutoConfig

    (rope,) = model_spec(name, 1024).ropes
    theirs = AutoConfig.for_model(**deepcopy(CONFIGS[name])).rope_parameters
    assert (theirs["rope_type"], theirs["rope_theta"]) == (rope.kind.value, rope.theta)
    assert theirs.get("factor", 1.0) == rope.factor and list(theirs.get("long_factor", ())) == list(rope.long_factors)


def test_every_shape_is_a_llama_or_of_another_family() -> None:
    assert sorted([*LLAMAS, *FAMILY_MODELS]) == sorted(CONFIGS)
    assert {CONFIGS[name]["model_type"] for name in LLAMAS} == {"llama"}


@pytest.mark.parametrize(("names", "context"), [(LLAMAS, 8192), (FAMILY_MODELS, 128)])
def test_the_longest_measured_context_fits(names: tuple[str, ...], context: int) -> None:
    for name in names:
        assert usable_contexts(name, [context], 512) == [context]


@pytest.mark.parametrize(
    ("name", "llama"),
    [
        ("gpt2", "smollm2-135m"),
        ("qwen3-0.6b", "qwen3-0.6b-shape"),
        ("qwen2.5-1.5b", "smollm2-1.7b"),
        ("gemma-2-2b", "llama-3.2-3b"),
    ],
)
def test_the_nearest_llama_is_the_one_of_that_size(name: str, llama: str) -> None:
    assert nearest_llama(name) == llama and nearest_llama(llama) == llama


def test_a_step_reads_every_weight_but_a_table_that_is_looked_up_and_the_old_keys_and_values() -> None:
    tied, untied = model_spec("llama-3.2-1b", 256), model_spec("llama-3.1-8b", 256)
    assert step_bytes(tied, 0) == 2 * tied.parameters
    assert step_bytes(untied, 0) == 2 * (untied.parameters - 128256 * 4096)
    assert step_bytes(tied, 100.5) - step_bytes(tied, 0) == 2 * 2 * 16 * 8 * 64 * 100.5


def test_a_window_bounds_what_a_step_reads_of_the_cache() -> None:
    gemma = model_spec("gemma-2-2b", 8192)
    assert [layer.window for layer in gemma.layers] == [4096, None] * 13
    position = 2 * 2 * 4 * 256  # bytes of keys and values of a layer
    assert step_bytes(gemma, 4096) - step_bytes(gemma, 0) == 26 * 4096 * position
    assert step_bytes(gemma, 6000) - step_bytes(gemma, 4096) == 13 * (6000 - 4096) * position


def test_a_table_of_positions_is_looked_up() -> None:
    gpt2 = model_spec("gpt2", 640)
    assert step_bytes(gpt2, 0) == 2 * (gpt2.parameters - 640 * 768)
