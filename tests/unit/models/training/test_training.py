"""The command as a whole, on a text and a network that take a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jitmk.models.training.__main__ import main
from jitmk.models.training.loop import learning_rate_factor
from jitmk.models.training.recipe import Recipe, TrainingError
from tests.unit.models.training.texts import write_text

TINY = """
--vocab-size 300 --hidden-size 32 --num-layers 1 --num-heads 2 --num-kv-heads 1 --head-dim 16 --intermediate-size 32
--context 32 --steps 40 --warmup-steps 4 --batch-size 4 --evaluate-every 20 --deterministic --device cpu
"""


def run(text: Path, out: Path, *more: str) -> int:
    return main(["--text", str(text), "--out", str(out), *TINY.split(), *more])


def test_the_command_trains_exports_and_repeats_itself(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = write_text(tmp_path / "text")
    assert run(text, tmp_path / "one") == 0
    record = json.loads((tmp_path / "one" / "training.json").read_text())
    assert record["validation_curve"][-1][1] < 5.0  # it begins at ln 300 = 5.7
    assert record["deterministic"] is True
    card = (tmp_path / "one" / "README.md").read_text()
    assert "--vocab-size 300 --hidden-size 32" in card and "--deterministic\n" in card
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert model.num_parameters() == record["parameters"]
    assert AutoTokenizer.from_pretrained(tmp_path / "one").decode([0, 1]) == "<s></s>"

    assert run(text, tmp_path / "two") == 0
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "text", "two"]


def test_a_folder_that_is_in_use_is_refused_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert run(tmp_path / "absent", tmp_path / "out") == 1
    assert "already exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("jitmk.models.training.export._write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        run(write_text(tmp_path / "text"), tmp_path / "out", "--steps", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--num-heads", "3", "--num-kv-heads", "2"], "num_heads=3 must be a multiple of num_kv_heads=2"),
        (["--vocab-size", "257"], "vocab_size=257 must be at least 258"),
        (["--dropout", "1"], "dropout=1.0 must be in [0, 1)"),
        (["--steps", "0"], "steps=0 must be at least 1"),
        (["--context", "1"], "context=1 must be at least 2"),
    ],
)
def test_impossible_recipes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], complaint: str
) -> None:
    assert run(tmp_path / "absent", tmp_path / "out", *flags) == 1
    assert complaint in capsys.readouterr().err


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(step, recipe) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[:10] == sorted(factors[:10]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0.0)


def test_recipe_defaults_are_the_bundled_model() -> None:
    from jitmk.models import bundled_model_dir

    record = json.loads((bundled_model_dir() / "training.json").read_text())
    assert Recipe(**record["recipe"]) == Recipe()
    with pytest.raises(TrainingError):
        Recipe(num_kv_heads=3)
