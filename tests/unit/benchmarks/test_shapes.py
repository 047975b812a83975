from __future__ import annotations

import pytest
import torch

from benchmarks.shapes import CONFIGS, model_spec, step_bytes


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_and_jitmk_read_the_same_model(name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**CONFIGS[name])
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    spec = model_spec(name, 1024)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == spec.parameters
    rope = dict(config.rope_parameters or {})
    assert (rope["rope_type"], rope["rope_theta"]) == (spec.rope.kind.value, spec.rope.theta)
    assert rope.get("factor", 1.0) == spec.rope.factor


@pytest.mark.parametrize("name", CONFIGS)
def test_the_longest_measured_context_fits(name: str) -> None:
    assert model_spec(name, 8192 + 512).max_positions == 8192 + 512


def test_a_step_reads_every_weight_but_a_table_that_is_looked_up_and_the_old_keys_and_values() -> None:
    tied, untied = model_spec("llama-3.2-1b", 256), model_spec("llama-3.1-8b", 256)
    assert step_bytes(tied, 0) == 2 * tied.parameters
    assert step_bytes(untied, 0) == 2 * (untied.parameters - 128256 * 4096)
    assert step_bytes(tied, 100.5) - step_bytes(tied, 0) == 2 * 2 * 16 * 8 * 64 * 100.5
