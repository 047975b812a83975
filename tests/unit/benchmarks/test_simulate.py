from __future__ import annotations

import pytest

from benchmarks.shapes import model_spec
from benchmarks.simulate import Machine, main, simulate
from jitmk.arch import GpuArch

H200 = GpuArch.parse("sm_90a", sm_count=132)
USUAL = Machine()


def excess(name: str, policy: str = "level", machine: Machine = USUAL) -> float:
    return simulate(model_spec(name, 256), H200, policy, machine).excess_us


def test_where_units_come_out_even_only_the_stream_counts() -> None:
    """384 units of down on 132 SMs, and rings that hold more than the SMs load meanwhile."""
    assert abs(excess("llama-3.2-3b")) < 0.3
    assert excess("llama-3.2-3b", "round_robin") == excess("llama-3.2-3b"), "the same schedule"


@pytest.mark.parametrize("name", ["qwen2.5-1.5b", "gemma-2-2b", "qwen3-4b", "qwen2.5-7b"])
def test_level_pays_where_they_do_not(name: str) -> None:
    assert excess(name, "level") < excess(name, "round_robin") - 0.5


def test_a_narrow_model_is_a_chain_of_hops() -> None:
    """Five of them a layer take longer than its bytes, so what a hop takes longer is what the layer does."""
    usual, slower = excess("smollm2-360m"), excess("smollm2-360m", machine=Machine(hop_us=1.9))
    assert slower - usual == pytest.approx(4 * 0.5, abs=0.3), "attention's own hop is part of attention_us"
    assert excess("smollm2-360m", machine=Machine(hop_us=0.0, attention_us=0.0)) < 1


def test_a_row_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", "gpt2,qwen3-0.6b", "--policies", "wave,level"]) == 0
    _, header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "bytes", "wave", "level"]
    assert [row.split()[0] for row in rows] == ["gpt2", "qwen3-0.6b"]
    assert all(len(row.split()) == 4 for row in rows)
