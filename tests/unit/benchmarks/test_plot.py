from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks import plot
from benchmarks.plot import CEILING, draw, main, series_of
from benchmarks.records import BenchmarkError, write_results
from benchmarks.references import NOTE, REFERENCES
from benchmarks.shapes import CONFIGS
from tests.unit.benchmarks.samples import record

RECORDS = [
    record(550.0),
    record(600.0, context=4096, ceiling_us=530.0),
    record(9000.0, "transformers eager"),
    record(1300.0, "torch.compile + CUDA graphs"),
    record(900.0, model="smollm2-360m"),
]

with_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed: pip install -e '.[bench]'"
)


def test_every_system_is_a_series_and_the_ceiling_is_one_too() -> None:
    series = {found.label: found.points for found in series_of(RECORDS, "llama-3.2-1b")}
    assert list(series) == [
        "jitmk",
        CEILING,
        "transformers eager",
        "torch.compile + CUDA graphs",
        f"HazyResearch/Megakernels ({NOTE})",
        f"vLLM 0.22.1 ({NOTE})",
    ]
    assert series["jitmk"] == ((128, 550.0), (4096, 600.0))
    assert series[CEILING] == ((128, 500.0), (4096, 530.0))
    assert series[f"vLLM 0.22.1 ({NOTE})"][0] == (128, 1236.0)
    # A run of many contexts has no place on the axis.
    assert 802.0 not in [us for _, us in series[f"HazyResearch/Megakernels ({NOTE})"]]


def test_a_model_without_references_has_only_what_was_measured() -> None:
    assert [found.label for found in series_of(RECORDS, "smollm2-360m")] == ["jitmk", CEILING]


def test_no_two_series_look_alike() -> None:
    styles = [*plot._STYLES.values(), *plot._REFERENCE_STYLES]
    assert len({style.color for style in styles}) == len({style.marker for style in styles}) == len(styles)


def test_references_are_of_known_shapes() -> None:
    assert {reference.model for reference in REFERENCES} <= set(CONFIGS)
    assert {reference.system for reference in REFERENCES} == {"HazyResearch/Megakernels", "vLLM 0.22.1"}


@with_matplotlib
def test_the_figure_has_a_line_for_each_series_of_each_model(tmp_path: Path) -> None:
    draw(RECORDS, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    drawn = re.findall(r'<g id="([^"]+: [^"]+)">', text)
    for model in ("llama-3.2-1b", "smollm2-360m"):
        expected = [f"{model}: {series.label}" for series in series_of(RECORDS, model)]
        # jitmk and the ceiling are in both panels of a model.
        assert sorted({name for name in drawn if name.startswith(model)}) == sorted(expected)
        assert drawn.count(f"{model}: jitmk") == drawn.count(f"{model}: {CEILING}") == 2
    assert NOTE in text and CEILING in text and "context, tokens" in text
    draw(RECORDS, tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text(encoding="utf-8") == text


@with_matplotlib
def test_the_command_draws_a_file_of_results(tmp_path: Path) -> None:
    write_results(tmp_path / "decode.json", {}, RECORDS, [], [])
    assert main([str(tmp_path / "decode.json"), "-o", str(tmp_path / "new" / "out.svg")]) == 0
    assert (tmp_path / "new" / "out.svg").stat().st_size > 10_000


def test_nothing_to_draw_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "decode.json", {}, [record(9000.0, "transformers eager")], [], [])
    assert main([str(tmp_path / "decode.json"), "-o", str(tmp_path / "out.svg")]) == 1
    assert "there is no record of jitmk to draw" in capsys.readouterr().err


def test_without_matplotlib_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(BenchmarkError, match=r"drawing needs matplotlib: run pip install -e '\.\[bench\]'"):
        draw(RECORDS, tmp_path / "out.svg")
    assert not (tmp_path / "out.svg").exists()


def test_only_svg_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "result.json"), "-o", str(tmp_path / "plot.png")])
    assert "does not end in .svg" in capsys.readouterr().err
    assert not (tmp_path / "plot.png").exists()
