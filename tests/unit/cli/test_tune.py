"""The whole command with a GPU that is made up: what it prints, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from jitmk.arch import GpuArch
from jitmk.cli import cache as cache_command
from jitmk.cli import tune
from jitmk.cli.main import build_parser, main
from jitmk.cuda.device import Device
from jitmk.engine import megakernel, select
from jitmk.engine.megakernel import STEPS_PER_LAUNCH
from jitmk.engine.tuning import Tuning, default_tuning, find_tuning
from jitmk.jit import KernelCache, upkeep
from jitmk.jit.tunings import TuningKey
from jitmk.settings import get_settings
from tests.support.shapes import llama

H200 = GpuArch.parse("sm_90a")
SPEC = llama(2048, 8192, 2, 32, 8, 64, vocab_size=1000)
KEY = TuningKey("ab" * 32, "NVIDIA H200", H200.sm_count)
DEFAULT = default_tuning(SPEC, H200, 131072)
GPU: Any = SimpleNamespace(name=KEY.gpu, arch=H200)


class MadeUp:
    """Opens rigs on which a window of 4 is best, and 8 splits at any context from 200 on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, faster: bool = True) -> None:
        self.closed = 0
        self.faster = faster
        self.fail: Callable[[], None] = lambda: None
        monkeypatch.setattr(tune, "open_rig", self.open)

    def open(self, args: Any) -> tune.Rig:
        return tune.Rig(SPEC, H200, KEY, 1008, DEFAULT, self.measure, self.close)

    def measure(self, tuning: Tuning, context: int) -> float:
        self.fail()
        if not self.faster:
            return 600.0
        return 600 + 20 * abs(tuning.window - 4) + 10 * (tuning.splits(context) != (8 if context > 200 else 1))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("JITMK_CACHE_DIR", str(tmp_path / "cache"))


def stored() -> Tuning:
    return find_tuning(SPEC, GPU, KEY.kernel, 131072, get_settings())[0]


def test_what_is_fastest_is_shown_kept_and_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = MadeUp(monkeypatch)
    assert main(["tune", "--quick"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("us a step, window"))
    assert lines[header].split()[4:] == ["1", "2", "3", "4"]
    assert lines[header + 1].split()[:2] == ["context", "128"] and "600.0*" in lines[header + 1]
    assert lines[header + 1].count("*") == 1 and "660.0" in lines[header + 1]
    assert "us a step, policy" in out and "us a step, splits" in out
    assert f"default  {DEFAULT}" in lines and f"chosen   {stored()}" in lines
    assert stored().window == 4 and [stored().splits(c) for c in (0, 128, 512, 1008)] == [1, 1, 8, 8]
    assert f"kept     for kernel {KEY.kernel[:16]} on NVIDIA H200 (132 SMs)" in out
    assert rig.closed == 1
    (record,) = [record for _, record in upkeep.tunings(KernelCache.from_settings(get_settings()))]
    assert record is not None and ["window", 4, 128, 600.0] in record.measured


def test_a_dry_run_keeps_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    MadeUp(monkeypatch)
    assert main(["tune", "--quick", "--dry-run"]) == 0
    assert "kept     nothing" in capsys.readouterr().out
    assert not KernelCache.from_settings(get_settings()).root.exists()


def test_where_nothing_is_faster_the_default_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    MadeUp(monkeypatch, faster=False)
    assert main(["tune", "--quick"]) == 0
    assert "chosen   the same" in capsys.readouterr().out
    assert stored() == DEFAULT


def test_off_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JITMK_TUNING", "off")
    MadeUp(monkeypatch)
    assert main(["tune", "--quick"]) == 0
    assert "JITMK_TUNING=off: it is not used" in capsys.readouterr().out
    assert stored() == DEFAULT


def test_an_interrupted_run_keeps_nothing_and_gives_the_gpu_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = MadeUp(monkeypatch)

    def interrupt() -> None:
        raise KeyboardInterrupt

    rig.fail = interrupt
    assert main(["tune", "--quick"]) == 130
    assert rig.closed == 1
    assert not KernelCache.from_settings(get_settings()).root.exists()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from jitmk.errors import DeviceError

    def no_gpu(index: int | None = None) -> Any:
        raise DeviceError("there is no GPU on this machine")

    monkeypatch.setattr(Device, "open", no_gpu)
    assert main(["tune"]) == 1
    assert capsys.readouterr().err.startswith("jitmk: error: there is no GPU")


def test_the_other_commands_show_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "tuning    none stored: models run with the defaults" in capsys.readouterr().out
    MadeUp(monkeypatch)
    assert main(["tune", "--quick"]) == 0
    capsys.readouterr()

    monkeypatch.setattr(Device, "open", lambda index=None: _FakeGpu())
    said = f"kernel {KEY.kernel[:16]}: llama of 2 layers, hidden size 2048 on NVIDIA H200 (132 SMs): first_look"
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "tuning    1 stored\n" in out and said in out
    monkeypatch.setenv("JITMK_TUNING", "off")
    assert main(["info"]) == 0
    assert "tuning    1 stored, ignored for JITMK_TUNING=off\n" in capsys.readouterr().out
    monkeypatch.setattr(_FakeGpu, "name", "NVIDIA H100")
    assert main(["info"]) == 0
    assert said not in capsys.readouterr().out

    assert cache_command.main(["list"]) == 0
    assert f"tuning of {said}" in capsys.readouterr().out
    assert cache_command.main(["stats"]) == 0
    assert "tunings      1 (" in capsys.readouterr().out
    (file,) = KernelCache.from_settings(get_settings()).tunings.glob("*/tuning.json")
    file.write_text("{}")
    assert cache_command.main(["list"]) == 0
    assert f"tuning {file.parent.name[:16]}: damaged" in capsys.readouterr().out
    assert cache_command.main(["verify"]) == 1
    assert "is not a tuning of jitmk" in capsys.readouterr().out
    assert cache_command.main(["clear"]) == 0
    assert not KernelCache.from_settings(get_settings()).root.exists()


class FakeBackend:
    """Stands in for the megakernel: notes what it is given."""

    kernel = SimpleNamespace(key=KEY.kernel)

    def __init__(self, spec: Any, plan: Any, source: Any, gpu: Any, *, max_seq_len: int, tuning: Tuning, **_: Any):
        self.source, self.max_seq_len, self.tuning = source, max_seq_len, tuning
        self.filled = False

    def fill_cache(self) -> None:
        self.filled = True

    def use(self, tuning: Tuning) -> None:
        self.tuning = tuning

    def step_us(self, context: int) -> float:
        assert self.filled and context + STEPS_PER_LAUNCH <= self.max_seq_len
        return 100.0 * self.tuning.window

    def close(self) -> None:
        pass


@pytest.fixture
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(index=0, name=KEY.gpu, arch=H200)
    monkeypatch.setattr(select, "select_backend", lambda backend, device: SimpleNamespace(gpu=gpu))
    monkeypatch.setattr(megakernel, "MegakernelBackend", FakeBackend)


@pytest.mark.usefixtures("fake_backend")
@pytest.mark.parametrize("flags", [[], ["--random-weights"], ["--max-context", "300"]])
def test_a_rig_is_made_of_the_model_that_was_named(flags: list[str]) -> None:
    rig = tune.open_rig(build_parser().parse_args(["tune", *flags]))
    assert rig.key == KEY and rig.spec.hidden_size == 256
    assert rig.context == (300 if "--max-context" in flags else 1024) - STEPS_PER_LAUNCH
    assert rig.default == default_tuning(rig.spec, H200, 1024)
    assert rig.measure(replace(rig.default, window=2), rig.context) == 200


@pytest.mark.usefixtures("fake_backend")
@pytest.mark.parametrize(("length", "message"), [("20", "20 positions are too few"), ("999999", "999999")])
def test_a_context_that_cannot_be_measured_is_refused(
    length: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--max-context", length]) == 1
    assert message in capsys.readouterr().err


class _FakeGpu:
    """What `Device.open` gives on a machine with one Hopper GPU."""

    index, name, arch, total_bytes, driver = 0, "NVIDIA H200", H200, 1, (13, 0)

    def __enter__(self) -> _FakeGpu:
        return self

    def __exit__(self, *exception: object) -> None:
        pass
