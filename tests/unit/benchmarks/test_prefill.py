from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch

from benchmarks import prefill
from benchmarks.prefill import TRANSFORMERS, PrefillRecord, measure, print_records, transformers_prefill
from tests.support.checkpoints import TINY

CPU = torch.device("cpu")


def records_of(jitmk_ms: float, tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[PrefillRecord]:
    """Records of a jitmk that takes so long beside a transformers that takes 10 ms."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(prefill, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def works_for(ms: float, first_ms: float) -> Callable[[Sequence[int]], torch.Tensor]:
        calls: list[int] = []

        def work(prompt: Sequence[int]) -> torch.Tensor:
            calls.append(len(prompt))
            clock.now += (first_ms if len(calls) <= prefill._WARM_UPS else ms) / 1e3
            return torch.empty(0)

        return work

    systems = {"jitmk": works_for(jitmk_ms, 5000.0), TRANSFORMERS: works_for(10.0, 900.0)}
    return measure("llama-3.2-1b", [1] * tokens, systems, 3, CPU)


@pytest.mark.parametrize(
    ("jitmk_ms", "tokens", "met"),
    [(9.9, 512, True), (10.5, 512, False), (10.9, 8192, True), (11.5, 8192, False), (50.0, 100, True)],
)
def test_jitmk_is_held_to_transformers(
    jitmk_ms: float, tokens: int, met: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, theirs = records_of(jitmk_ms, tokens, monkeypatch)
    assert (mine.baseline, theirs.baseline, mine.context) == ("jitmk", TRANSFORMERS, tokens)
    assert mine.prefill_ms == pytest.approx(jitmk_ms) and len(mine.all_prefill_ms) == 3
    assert mine.ratio == pytest.approx(jitmk_ms / 10) and theirs.ratio == 1.0
    assert mine.met is met and theirs.met
    print_records([mine, theirs])
    assert ("MISSED" in capsys.readouterr().out) is not met


def test_transformers_runs_a_prompt_to_its_last_logits() -> None:
    run = transformers_prefill({**TINY, "model_type": "llama", "vocab_size": 256}, CPU)
    logits = run([1, 2, 3, 4])
    assert logits.shape == (256,) and logits.dtype is torch.float32 and bool(logits.isfinite().all())
    assert torch.equal(run([1, 2, 3, 4]), logits)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("arguments", [["--models", "x"], ["--contexts", "512,"], ["--repeats", "0"]])
def test_a_wrong_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        prefill.main(arguments)
