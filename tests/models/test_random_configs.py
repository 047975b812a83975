"""Configs that nobody chose: whatever jitmk accepts, it computes at least as well as transformers' bf16 does."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jitmk
from tests.models.checkpoints import any_checkpoint
from tests.models.comparing import DTYPES, assert_at_least_as_close
from tests.support.checkpoints import TINY_OF, load_transformers

LENGTH, PREFILLED = 64, 24
"""Enough positions, of enough layers and tokens, for means to say more than chance does."""

EXAMPLES = {"llama": 12}
"""Of the other families, 4."""


@pytest.mark.parametrize("family", TINY_OF)
def test_any_config(family: str) -> None:
    @settings(
        max_examples=EXAMPLES.get(family, 4),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.data(), st.integers(0, 2**31))
    def check(data: st.DataObject, seed: int) -> None:
        compare(family, data, seed)

    check()


def compare(family: str, data: st.DataObject, seed: int) -> None:
    checkpoint = data.draw(any_checkpoint(family))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(checkpoint.config["vocab_size"], (LENGTH,), generator=generator)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = checkpoint.write(Path(name), seed)
        with torch.inference_mode():
            logits = {dtype: load_transformers(folder, dtype)(ids[None]).logits[0].float() for dtype in DTYPES}
        with jitmk.load_model(folder, backend="reference") as model:
            whole = model.logits(ids.tolist())
            model.backend.prefill(ids[:PREFILLED].tolist())
            steps = [model.backend.step_logits(int(ids[at]), at).clone() for at in range(PREFILLED, LENGTH)]
    assert_at_least_as_close(whole, logits)
    assert_at_least_as_close(torch.stack(steps), {dtype: rows[PREFILLED:] for dtype, rows in logits.items()})
