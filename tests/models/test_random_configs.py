"""Configs that nobody chose: whatever jitmk accepts, it computes at least as well as transformers' bf16 does."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jitmk
from tests.support.checkpoints import TinyCheckpoint, load_transformers
from tests.support.truth import mean_kl, relative_error

LENGTH, PREFILLED = 64, 24
"""Enough positions, of enough layers and tokens, for means to say more than chance does."""

ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16, "beta_fast": 24.0},
)


@st.composite
def checkpoints(draw: st.DrawFn) -> TinyCheckpoint:
    """A checkpoint of any shape that a Llama config can have, small."""
    kv_heads, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    heads = kv_heads * ratio
    # transformers wants a hidden size that the heads divide, jitmk a multiple of 16.
    grain = math.lcm(16, heads)
    changes = {
        "vocab_size": draw(st.integers(200, 1000)),
        "hidden_size": grain * draw(st.integers(-(-64 // grain), max(1, 320 // grain))),
        "intermediate_size": 16 * draw(st.integers(4, 20)),
        "num_hidden_layers": draw(st.integers(2, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([64, 80, 96, 128, 256])),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        "rope_parameters": {"rope_theta": draw(st.sampled_from([1e4, 5e5])), **draw(st.sampled_from(ROPES))},
    }
    # In bf16, so that the weights are the truth's own. Rounding others to bf16 is an error that both sides share, and
    # in a small model the largest one: which side is closer would be chance.
    return TinyCheckpoint("random", changes, dtype=torch.bfloat16)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(checkpoints(), st.integers(0, 2**31))
def test_any_config(checkpoint: TinyCheckpoint, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(checkpoint.config["vocab_size"], (LENGTH,), generator=generator)
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoint.write(Path(name), seed)
        with torch.inference_mode():
            truth, bf16 = (
                load_transformers(folder, dtype)(ids[None]).logits[0].float()
                for dtype in (torch.float32, torch.bfloat16)
            )
        with jitmk.load_model(folder, backend="reference") as model:
            whole = model.logits(ids.tolist())
            model.backend.prefill(ids[:PREFILLED].tolist())
            steps = [model.backend.step_logits(int(ids[at]), at).clone() for at in range(PREFILLED, LENGTH)]
    for logits, of in ((whole, slice(None)), (torch.stack(steps), slice(PREFILLED, None))):
        assert relative_error(logits, truth[of]) <= relative_error(bf16[of], truth[of])
        assert mean_kl(logits, truth[of]) <= mean_kl(bf16[of], truth[of])
