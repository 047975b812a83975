"""docs/adding-a-model.md: its Python, as it stands there, adds a family and generates with it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import jitmk
from jitmk.model.checkpoint import Checkpoint
from jitmk.model.families import registry, spec_from_config
from jitmk.model.files import read_config
from tests.support.plain_model import PlainModel

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-model.md"
FAMILY, CHECKPOINT, USE = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)

BF16_NOISE = 0.015
"""Relative error of logits: every vector between two projections is rounded to 8 bits (2^-9 each), some dozen times one
after the other. A part that is left out or read wrongly is worth ten times as much."""


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The page's names, after its first two blocks."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(FAMILY + CHECKPOINT, str(DOCUMENT), "exec"), names)
    return names


def test_it_is_short_and_no_cuda() -> None:
    assert len(FAMILY.splitlines()) < 100
    assert "cuda" not in FAMILY.lower()


def test_the_page_runs(namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(USE, str(DOCUMENT), "exec"), namespace)
    backend, tokens = capsys.readouterr().out.split(" ", 1)
    assert backend in ("megakernel", "reference") and len(ast.literal_eval(tokens)) == 24


def test_the_family_computes_what_its_spec_says(namespace: dict[str, Any], tmp_path: Path) -> None:
    namespace["write_heron"](tmp_path)
    ids = torch.randint(1000, (40,), generator=torch.Generator().manual_seed(1))  # past the window
    with Checkpoint.open(tmp_path, spec_from_config(read_config(tmp_path))) as source:
        truth = PlainModel(source).logits(ids)
    with jitmk.load_model(tmp_path, backend="reference") as model:
        whole = model.logits(ids.tolist())
        model.backend.prefill(ids[:20].tolist())
        steps = [model.backend.step_logits(int(ids[at]), at).clone() for at in range(20, 40)]
    for logits, of in ((whole, truth), (torch.stack(steps), truth[20:])):
        assert (logits - of).norm() <= BF16_NOISE * of.norm()
