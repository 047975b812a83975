"""LongRoPE: a text that grows past the original context is computed anew there, as transformers' `generate` does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jitmk
from tests.support.checkpoints import TINY_OF, TinyCheckpoint, load_transformers

ORIGINAL = TINY_OF["phi3"]["original_max_position_embeddings"]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyCheckpoint("phi3", family="phi3").write(tmp_path_factory.mktemp("phi3"))


@pytest.mark.parametrize("length", [ORIGINAL - 12, ORIGINAL, ORIGINAL + 1])
@pytest.mark.parametrize("logprobs", [None, 1], ids=["backend", "host"])
def test_tokens_are_those_of_transformers(folder: Path, length: int, logprobs: int | None) -> None:
    theirs = load_transformers(folder, torch.float32)
    prompt = torch.randint(3, 100, (1, length), generator=torch.Generator().manual_seed(length))
    made = theirs.generate(
        prompt,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits, truth = torch.cat(made.logits), made.sequences[0, length:].tolist()
    with jitmk.load_model(str(folder), backend="reference") as model:
        ours = model.generate(
            prompt[0].tolist(), max_new_tokens=NEW_TOKENS, temperature=0, eos_token_ids=[], logprobs=logprobs
        ).token_ids
    best = logits.float().topk(2).values
    margins = ((best[:, 0] - best[:, 1]) / logits.float().std(dim=-1)).tolist()
    agreed = next((i for i, (a, b) in enumerate(zip(ours, truth, strict=True)) if a != b), NEW_TOKENS)
    assert agreed == NEW_TOKENS or margins[agreed] < 0.05, f"token {agreed} differs where the margin decides"
    assert length + agreed > ORIGINAL + 4, "too few tokens agree to reach past the original context"
