"""Whole models: jitmk's logits are as close to the fp32 truth as transformers' own bf16 path is, or closer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import jitmk
from jitmk.engine.model import Model
from tests.support.checkpoints import TinyCheckpoint, load_transformers
from tests.support.truth import mean_kl, relative_error

PROMPT, STEPS = 40, 24


def _rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


CHECKPOINTS = (
    TinyCheckpoint("multi-head", {"num_key_value_heads": 2}),
    TinyCheckpoint(
        "linear-rope-head-80-tied",
        {
            "hidden_size": 320,
            "num_attention_heads": 4,
            "head_dim": 80,
            "tie_word_embeddings": True,
            **_rope("linear", factor=4.0),
        },
    ),
    TinyCheckpoint(
        "dynamic-rope-head-96-gqa-3",
        {
            "num_attention_heads": 3,
            "hidden_size": 144,
            "head_dim": 96,
            # The pretrained context: prompt and generation go past it.
            "max_position_embeddings": 32,
            **_rope("dynamic", factor=4.0),
        },
    ),
    TinyCheckpoint(
        "llama3-rope-head-128-biases",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "attention_bias": True,
            "mlp_bias": True,
            **_rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        },
    ),
    TinyCheckpoint(
        "yarn-rope-head-256-fp16",
        {
            "head_dim": 256,
            "tie_word_embeddings": True,
            **_rope("yarn", factor=8.0, original_max_position_embeddings=32),
        },
        dtype=torch.float16,
    ),
    TinyCheckpoint(
        "odd-vocabulary-fp32-sharded",
        {"vocab_size": 4099, "num_hidden_layers": 1, "num_attention_heads": 9, "hidden_size": 144},
        dtype=torch.float32,
        shard_size="1MB",
    ),
)


@dataclass(frozen=True)
class Case:
    """A checkpoint, tokens for it, and what transformers makes of them in fp32 and bf16."""

    folder: Path
    max_seq_len: int | None
    ids: list[int]
    prompt: dict[torch.dtype, torch.Tensor]
    decoded: dict[torch.dtype, torch.Tensor]


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    checkpoint: TinyCheckpoint = request.param
    folder = checkpoint.write(tmp_path_factory.mktemp(checkpoint.name))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(checkpoint.config["vocab_size"], (PROMPT + STEPS,), generator=generator).tolist()
    prompt, decoded = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        prompt[dtype], decoded[dtype] = _transformers(folder, dtype, ids)
    dynamic = "dynamic" in checkpoint.name
    return Case(folder, PROMPT + STEPS if dynamic else None, ids, prompt, decoded)


@torch.inference_mode()
def _transformers(folder: Path, dtype: torch.dtype, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the prompt, and of the other tokens decoded one by one with a cache; fp32."""
    model = load_transformers(folder, dtype)
    out = model(torch.tensor([ids[:PROMPT]]), use_cache=True)
    prompt, cache, rows = out.logits[0].float(), out.past_key_values, []
    for token in ids[PROMPT:]:
        out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0, -1].float())
    return prompt, torch.stack(rows)


@pytest.fixture(params=("torch", "reference"))
def model(request: pytest.FixtureRequest, case: Case) -> Iterator[Model]:
    with jitmk.load_model(case.folder, backend=request.param, device="cpu", max_seq_len=case.max_seq_len) as model:
        yield model


def _hold(logits: torch.Tensor, reference: dict[torch.dtype, torch.Tensor]) -> None:
    """The logits are at least as close to the truth as transformers' bf16 is, in both measures."""
    truth, bf16 = reference[torch.float32], reference[torch.bfloat16]
    assert logits.dtype is torch.float32 and logits.shape == truth.shape
    assert relative_error(logits, truth) <= relative_error(bf16, truth)
    assert mean_kl(logits, truth) <= mean_kl(bf16, truth)


def test_logits_of_a_prompt(case: Case, model: Model) -> None:
    _hold(model.logits(case.ids[:PROMPT]), case.prompt)


def test_logits_of_decoded_tokens(case: Case, model: Model) -> None:
    model.backend.prefill(case.ids[:PROMPT])
    rows = [model.backend.step_logits(case.ids[at], at).clone() for at in range(PROMPT, PROMPT + STEPS)]
    _hold(torch.stack(rows), case.decoded)


def test_greedy_tokens_where_the_choice_is_clear(case: Case, model: Model) -> None:
    """The truth, given jitmk's tokens so far, would choose the next one too, unless its top two are within noise."""
    result = model.generate(case.ids[:PROMPT], max_new_tokens=STEPS, temperature=0, eos_token_ids=[])
    truth, rows = _transformers(case.folder, torch.float32, case.ids[:PROMPT] + list(result.token_ids))
    chosen_from = torch.cat((truth[-1:], rows))[:-1]
    noise = (case.decoded[torch.bfloat16] - case.decoded[torch.float32]).abs().max()
    top = chosen_from.topk(2)
    clear = top.values[:, 0] - top.values[:, 1] > 2 * noise
    assert clear.sum() >= STEPS // 4, "the model leaves too few clear choices for this test to say anything"
    assert torch.equal(top.indices[clear, 0], torch.tensor(result.token_ids)[clear])
