from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from jitmk.cli.main import main
from jitmk.engine.torch_backend import TorchBackend


def test_two_backends_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--backends", "torch,schedule:pool", "--context", "20", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("20 tokens of context, 2 steps: torch and schedule:pool\n")
    assert "position 21: logits differ by" in out and out.endswith("all differences are rounding\n")
    assert all(kind in out for kind in ("embed", "qkv", "attention (cache)", "o_proj", "gate_up", "down", "lm_head"))


def test_the_default_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from jitmk.engine import select

    cpu = select.Selection("reference", torch.device("cpu"), "a test wants it")
    monkeypatch.setattr(select, "select_backend", lambda *_: cpu)
    assert main(["diff", "--steps", "1"]) == 0
    assert "1 steps: schedule:level and reference" in capsys.readouterr().out


def test_a_wrong_phase_is_named_with_layer_and_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = TorchBackend.phase_outputs

    def wrong(self: TorchBackend, token: int, position: int) -> Mapping[str, torch.Tensor]:
        outputs = dict(right(self, token, position))
        if position == 21:
            outputs["layers.3.o_proj.residual"][[5, 9]] += 1.0
        return outputs

    monkeypatch.setattr(TorchBackend, "phase_outputs", wrong)
    assert main(["diff", "--backends", "torch,reference", "--context", "20", "--steps", "3"]) == 1
    out = capsys.readouterr().out
    found = [line for line in out.splitlines() if "beyond rounding" in line]
    assert found[0].startswith(
        "torch at position 21: the first phase beyond rounding is layers.3.o_proj (layer 3), layers.3.o_proj.residual, "
        "rows 5, 9: off by up to 1"
    )
    assert found[1:] == ["beyond rounding: see above"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "torch"], "name two"),
        (["--backends", "torch,cudnn"], "'cudnn' does not exist"),
        (["--backends", "torch,schedule:best"], "there is no schedule policy 'best'"),
        (["--context", "0"], "--context 0"),
        (["--steps", "2000"], "the model's 1024 positions"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *arguments]) == 1
    assert message in capsys.readouterr().err
