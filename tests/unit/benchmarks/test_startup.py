from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks.loading import MAX_SEQ_LEN
from benchmarks.records import BenchmarkError
from benchmarks.shapes import model_spec
from benchmarks.startup import Measurement, Skipped, measure_import, measure_schedule, require_room, summarise
from jitmk.arch import GpuArch
from jitmk.codegen import render
from jitmk.codegen.prefill import render_prefill
from jitmk.engine.step_programs import kernel_variants
from jitmk.errors import DeviceError
from jitmk.settings import get_settings
from tests.unit.benchmarks.test_loading import RUN


def test_targets() -> None:
    assert Measurement("compile", 1.99, "s", 2).met
    assert not Measurement("compile", 2.0, "s", 2).met
    assert Measurement("load", 4.0, "GB/s", 4, at_least=True).met
    assert not Measurement("load", 3.9, "GB/s", 4, at_least=True).met
    assert Measurement("NVCC", 99.0, "s").met


def test_loads_are_summarised_by_the_median_and_memory_by_the_worst() -> None:
    slow = replace(RUN, load=8.0, first_token=8.25, host_growth=7_000_000_000, gpu_growth=33_000_000_000)
    load, host, on_gpu, launch = summarise("llama-3.1-8b", [RUN, slow, RUN])
    assert (load.value, load.runs, load.met) == (8, [8, 2, 8], True)
    assert load.details["read"] == RUN.read
    assert (host.value, host.met) == (1.4, False)
    assert (on_gpu.value > 2, on_gpu.met) == (True, False)
    assert (launch.value, launch.met) == (0.125, False)


def test_import_is_what_it_adds_to_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "_IMPORTS", 2)
    (measured,) = measure_import()
    assert len(measured.runs) == 2 and measured.value == min(measured.runs) and measured.unit == "ms"
    assert measured.details["interpreter_ms"] > 0


def test_a_schedule_is_timed_for_the_gpu() -> None:
    (measured,) = measure_schedule("llama-3.2-1b", GpuArch.parse("sm_90a"), 1)
    assert measured.value == measured.runs[0] > 0 and measured.details["sms"] == 132


def test_both_kernels_that_a_load_needs_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    arch, built = GpuArch.parse("sm_90a"), []
    monkeypatch.setattr("jitmk.jit.build", lambda source, arch, *, settings: built.append((source, settings)))
    for for_prefill in (False, True):
        startup.build_anew("gemma-2-2b", arch, get_settings(), for_prefill=for_prefill)
    spec = model_spec("gemma-2-2b", MAX_SEQ_LEN)
    assert [source for source, _ in built] == [render(kernel_variants(spec), spec, arch), render_prefill(spec)]
    assert built[0][1].cache_dir != built[1][1].cache_dir


def test_a_full_disk_is_noticed_first(tmp_path: Path) -> None:
    require_room(tmp_path, 0)
    with pytest.raises(BenchmarkError, match=r"GB free, but the checkpoint needs 10000000\.0 GB .* --folder"):
        require_room(tmp_path, 10**16)


def test_without_a_gpu_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_gpu() -> None:
        raise DeviceError("there is none")

    kernels = Measurement("NVRTC compile x", 2.5, "s", 2)
    monkeypatch.setattr(startup, "open_gpu", no_gpu)
    monkeypatch.setattr(startup, "measure_compile", lambda *_: [kernels, Skipped("NVCC compile", "there is no NVCC")])
    status = startup.main(["--json", str(tmp_path / "s.json"), "--parts", "compile,load"])
    assert status == 1
    content = json.loads((tmp_path / "s.json").read_text())
    assert [(one["name"], one["met"]) for one in content["measurements"]] == [("NVRTC compile x", False)]
    assert [one["why"] for one in content["skipped"]] == ["there is no NVCC", "there is none"]
    out = capsys.readouterr().out
    assert "MISSED" in out and "skipped load, memory and first token: there is none" in out


@pytest.mark.parametrize("arguments", [["--model", "x"], ["--parts", "x"], ["--repeats", "0"], ["--arch", "sm_70"]])
def test_a_wrong_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        startup.main(arguments)
