from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.families import beside_llamas, report
from benchmarks.records import write_results
from tests.unit.benchmarks.samples import record

LLAMAS = [record(550.0, model="llama-3.2-3b"), record(600.0, model="llama-3.2-3b", context=4096)]


@pytest.mark.parametrize(("us", "met"), [(577.0, True), (578.0, False), (500.0, True)])
def test_a_model_is_held_to_the_llama_of_its_size(us: float, met: bool) -> None:
    ((one),) = beside_llamas([record(us, model="gemma-2-2b")], LLAMAS)
    assert one.llama is LLAMAS[0] and one.met is met
    assert one.percent == pytest.approx(100 * (us / 550 - 1))


def test_only_the_same_measurement_is_held_against_it() -> None:
    records = [
        record(model="gemma-2-2b", context=1024),
        record(model="mistral-7b"),
        record(9000.0, "transformers eager", model="gemma-2-2b"),
    ]
    assert not beside_llamas(records, [*LLAMAS, record(9000.0, "transformers eager", model="llama-3.2-3b")])


def test_the_llamas_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "decode.json"
    report([record(model="phi-4-mini")], path)
    assert "no Llamas to compare with" in capsys.readouterr().out
    write_results(path, {}, LLAMAS, [], [])
    report([record(605.0, model="phi-4-mini")], path)
    shown = capsys.readouterr().out
    assert "llama-3.2-3b" in shown and "+10.0 %  MISSED" in shown
