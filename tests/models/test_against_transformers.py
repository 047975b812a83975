"""Whole models: jitmk's logits are as close to the fp32 truth as transformers' own bf16 path is, or closer.

The same tests hold for every backend; those of the megakernel are skipped where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import jitmk
from jitmk.engine.model import Model
from tests.models.checkpoints import CHECKPOINTS
from tests.models.comparing import (
    PROMPT,
    STEPS,
    Case,
    assert_at_least_as_close,
    assert_chosen_where_clear,
    transformers_logits,
)
from tests.support.checkpoints import TINY_OF

BACKENDS = ("torch", "reference", pytest.param("megakernel", marks=pytest.mark.gpu))


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.write(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest, case: Case) -> Iterator[Model]:
    device = "cuda" if request.param == "megakernel" else "cpu"
    with jitmk.load_model(case.folder, backend=request.param, device=device, max_seq_len=case.max_seq_len) as model:
        yield model


def test_every_family_is_there() -> None:
    assert {checkpoint.family for checkpoint in CHECKPOINTS} == set(TINY_OF)


def test_logits(case: Case, model: Model) -> None:
    """Of a prompt, then of tokens that are decoded on top of it."""
    assert_at_least_as_close(model.logits(case.ids[:PROMPT]), case.prompt)
    model.backend.prefill(case.ids[:PROMPT])
    rows = [model.backend.step_logits(case.ids[at], at).cpu().clone() for at in range(PROMPT, PROMPT + STEPS)]
    assert_at_least_as_close(torch.stack(rows), case.decoded)


def test_greedy_tokens_where_the_choice_is_clear(case: Case, model: Model) -> None:
    """The truth, given jitmk's tokens so far, would choose the next one too, unless its top two are within noise."""
    result = model.generate(case.ids[:PROMPT], max_new_tokens=STEPS, temperature=0, eos_token_ids=[])
    prompt, decoded = transformers_logits(
        case.folder,
        torch.float32,
        case.ids[:PROMPT] + list(result.token_ids[: STEPS - 1]),
        generated=True,
    )
    assert_chosen_where_clear(list(result.token_ids), torch.cat((prompt[-1:], decoded)), case.noise)
