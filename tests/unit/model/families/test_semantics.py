"""What a family reads from a config is what transformers computes: logits in fp32, of the plainest model there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jitmk.model.checkpoint import Checkpoint
from jitmk.model.families import spec_from_config
from tests.support.checkpoints import random_model
from tests.support.plain_model import PlainModel
from tests.unit.model.families.test_families import CASES

LENGTH = 56
"""Past every window and past Phi's pretrained context."""

EPSILON_KEYS = {"gpt2": "layer_norm_epsilon", "starcoder2": "norm_epsilon", "cohere": "layer_norm_eps"}

FP32_NOISE = 2e-5
"""Largest difference, in units of the largest logit. Sums of some hundred products are rounded in another order, which
is worth about 1e-6; a wrong epsilon, scale or position is worth more than 1e-3."""


@pytest.mark.parametrize(("model_type", "config"), CASES)
def test_logits_are_those_of_transformers(model_type: str, config: dict[str, Any], tmp_path: Path) -> None:
    config = config | {"vocab_size": 200, EPSILON_KEYS.get(model_type, "rms_norm_eps"): 0.03}
    model = random_model(model_type, config, seed=1).eval()
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    ids = torch.randint(200, (LENGTH,), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        truth = model(ids[None]).logits[0]
        with Checkpoint.open(tmp_path, spec_from_config(json.loads((tmp_path / "config.json").read_text()))) as source:
            logits = PlainModel(source).logits(ids)
    assert (logits - truth).abs().max() <= FP32_NOISE * truth.abs().max()
