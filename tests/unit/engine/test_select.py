from __future__ import annotations

from typing import Any

import pytest
import torch

import jitmk
from jitmk.cuda.device import Device
from jitmk.cuda.driver import NEEDED
from jitmk.engine import select
from jitmk.engine.select import open_backend, select_backend
from jitmk.model.checkpoint import RandomCheckpoint
from jitmk.settings import Settings
from tests.support.tiny import tiny_spec


class FakeGpu:
    """What `Device.open` gives on a machine with one Hopper GPU."""

    index = 0

    def __str__(self) -> str:
        return "GPU 0 (NVIDIA H200, sm_90a, 132 SMs)"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int | None = None) -> Any:
        raise jitmk.DeviceError(f"there is no NVIDIA driver on this machine (libcuda). {NEEDED}") from OSError(
            "libcuda"
        )

    monkeypatch.setattr(Device, "open", refuse)
    monkeypatch.setattr(select, "_torch_without_cuda", lambda: "torch finds no GPU")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "open", lambda index=None: FakeGpu())
    monkeypatch.setattr(select, "_torch_without_cuda", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("gpu")
def test_auto_takes_the_megakernel_where_there_is_a_gpu() -> None:
    selection = select_backend()
    assert (selection.backend, selection.device) == ("megakernel", torch.device("cuda", 0))
    assert "NVIDIA H200" in selection.reason and selection.gpu is not None


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_the_reference_elsewhere_and_says_why_in_one_line() -> None:
    selection = select_backend()
    assert (selection.backend, selection.device) == ("reference", torch.device("cpu"))
    assert selection.reason == "the megakernel cannot run here: there is no NVIDIA driver on this machine"


@pytest.mark.usefixtures("gpu")
def test_auto_goes_where_it_is_told() -> None:
    assert select_backend("auto", "cpu").backend == "reference"
    assert select_backend("auto", "cuda").backend == "megakernel"


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("backend", "device"), [("megakernel", None), ("auto", "cuda"), ("torch", "cuda")])
def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(backend: str, device: str | None) -> None:
    with pytest.raises(jitmk.DeviceError, match=r"no NVIDIA driver|no GPU"):
        select_backend(backend, device)


@pytest.mark.usefixtures("gpu")
def test_torch_takes_the_gpu_where_there_is_one() -> None:
    assert select_backend("torch").device.type == "cuda"
    assert select_backend("torch", "cpu").device.type == "cpu"
    with pytest.raises(jitmk.DeviceError, match="torch sees 1 GPUs"):
        select_backend("torch", "cuda:3")


def test_a_gpu_that_torch_cannot_use_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "open", lambda index=None: FakeGpu())
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in select_backend().reason
    with pytest.raises(jitmk.DeviceError, match=r"H200.*built without CUDA"):
        select_backend("megakernel")


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("cudnn", None, "backend='cudnn' does not exist; there are auto, megakernel, reference, torch"),
        ("reference", "cuda", "runs on the CPU"),
        ("megakernel", "cpu", "runs on a GPU"),
    ],
)
def test_what_cannot_be_is_refused(backend: str, device: str | None, message: str) -> None:
    with pytest.raises(jitmk.BackendError, match=message):
        select_backend(backend, device)


@pytest.mark.parametrize("device", ["tpu", "mps", "cuda:x", 3.5])
def test_what_is_no_device_is_refused(device: Any) -> None:
    with pytest.raises(jitmk.DeviceError, match="is not"):
        select_backend("auto", device)


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_what_was_selected_is_opened(name: str) -> None:
    source = RandomCheckpoint(tiny_spec())
    backend = open_backend(select_backend(name, "cpu"), source, max_seq_len=32, settings=Settings())
    assert backend.name == name and backend.max_seq_len == 32
