from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.baselines import KINDS
from benchmarks.records import (
    JITMK,
    RESULTS,
    BenchmarkError,
    Failure,
    Record,
    default_path,
    format_table,
    parse_records,
    read_records,
    write_results,
)
from benchmarks.shapes import CONFIGS
from tests.unit.benchmarks.samples import comparison, record, workload

REQUIRED = {"model", "context", "batch", "dtype", "us_per_token", "ceiling_us", "ratio", "baseline"}


def test_a_record_is_the_median_of_its_runs_beside_the_ceiling() -> None:
    made = Record.of(workload(ceiling_us=500.0), JITMK, [560.0, 550.0, 700.0], prefill_ms=30.0)
    assert (made.us_per_token, made.ratio, made.prefill_ms, made.host_launch_us) == (560.0, 1.12, 30.0, None)
    assert made.all_us_per_token == [560.0, 550.0, 700.0]
    assert made.tokens_per_second == pytest.approx(1785.71, abs=0.01)


def test_a_file_holds_every_system_as_a_record(tmp_path: Path) -> None:
    records = [record(), record(9000.0, "transformers eager")]
    failures = [Failure("llama-3.2-1b", "transformers compiled", "exit status 1: no compiler", 128)]
    path = tmp_path / "new" / "decode.json"
    write_results(path, {"device": "a GPU", "commit": None}, records, [comparison()], failures)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["environment"] == {"device": "a GPU", "commit": None}
    assert all(found.keys() >= REQUIRED and isinstance(found["baseline"], str) for found in content["records"])
    assert [found["baseline"] for found in content["records"]] == ["jitmk", "transformers eager"]
    assert content["checks"][0]["holds"] is True
    assert content["failures"][0]["why"] == "exit status 1: no compiler"
    assert read_records(path) == records


@pytest.mark.parametrize(
    "path", sorted([*RESULTS.glob("decode-*.json"), *RESULTS.glob("families-*.json")]), ids=lambda path: path.name
)
def test_committed_results_can_be_read(path: Path) -> None:
    records = read_records(path)
    assert records and len({found.key for found in records}) == len(records)
    for found in records:
        assert found.model in CONFIGS and found.baseline in (JITMK, *KINDS.values())
        assert found.ratio == pytest.approx(found.us_per_token / found.ceiling_us)
        assert found.dtype == "bfloat16" and found.batch == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"records": 3}', '{"records": [{"model": "a"}]}', '{"records": [{"new": 1}]}']
)
def test_a_file_that_holds_something_else_is_an_error(text: str) -> None:
    with pytest.raises(BenchmarkError, match=r"some\.json does not hold results of benchmarks\.decode"):
        parse_records(text, "some.json")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot be read: No such file"):
        read_records(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H200", "decode-h200.json"), ("NVIDIA H100 80GB HBM3", "decode-h100-80gb-hbm3.json")],
)
def test_a_gpu_has_its_file(device: str, name: str) -> None:
    assert default_path("decode", device) == RESULTS / name


@pytest.mark.parametrize(
    ("changes", "holds"),
    [({}, True), ({"error": 0.021}, False), ({"kl": 2e-4}, False), ({"wrong": 1}, False)],
)
def test_a_comparison_holds_where_jitmk_is_no_further_from_the_truth(changes: dict[str, float], holds: bool) -> None:
    made = comparison(**changes)  # type: ignore[arg-type]
    assert made.holds is holds and str(made).endswith("FAILED") is not holds


def test_a_table_is_aligned() -> None:
    assert format_table([["a", "long"], ["12", "b"]]) == " a  long\n12     b"
