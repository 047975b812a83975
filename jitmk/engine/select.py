"""Which backend runs a model, and why."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import torch

from jitmk.cuda.device import Device
from jitmk.cuda.driver import NEEDED
from jitmk.engine.backend import DecodeBackend
from jitmk.engine.reference_backend import ReferenceBackend
from jitmk.engine.torch_backend import TorchBackend
from jitmk.errors import BackendError, DeviceError
from jitmk.model.checkpoint import WeightSource
from jitmk.program.weights import plan_weights
from jitmk.settings import Settings

_log = logging.getLogger(__name__)

BACKENDS = ("auto", "megakernel", "reference", "torch")
"""What `load_model(backend=...)` takes."""


@dataclass(frozen=True)
class Selection:
    """The outcome of the choice.

    Attributes:
        backend: "megakernel", "reference" or "torch".
        device: where it runs.
        reason: why, for people to read.
        gpu: the GPU of the megakernel, else None.
    """

    backend: str
    device: torch.device
    reason: str
    gpu: Device | None = None


def select_backend(backend: str = "auto", device: str | torch.device | None = None) -> Selection:
    """Chooses backend and device, without allocating anything.

    `auto` takes the megakernel where there is a GPU that it supports, else the reference on the CPU.

    Args:
        backend: a name in `BACKENDS`.
        device: "cpu", "cuda" or "cuda:N"; None leaves it to the backend.

    Raises:
        BackendError: no such backend, or it cannot run on that device.
        DeviceError: there is no such device, or no GPU that the megakernel supports.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend={backend!r} does not exist; there are {', '.join(BACKENDS)}")
    wanted = _parse_device(device)
    if backend == "reference":
        if wanted is not None and wanted.type != "cpu":
            raise BackendError(f"backend='reference' runs on the CPU, not on {wanted}; pass device='cpu', or none")
        return Selection("reference", torch.device("cpu"), "asked for")
    if backend == "torch":
        return _select_torch(wanted)
    if backend == "megakernel":
        if wanted is not None and wanted.type != "cuda":
            raise BackendError(f"backend='megakernel' runs on a GPU, not on {wanted}; pass device='cuda', or none")
        return _megakernel(wanted, "asked for")
    return _select_auto(wanted)


def open_backend(
    selection: Selection, source: WeightSource, *, max_seq_len: int, settings: Settings, progress: bool = True
) -> DecodeBackend:
    """Loads a model's weights into the backend that was chosen.

    Raises:
        DeviceMemoryError: weights and cache do not fit.
        CheckpointError: a tensor cannot be read.
        CodegenError, CompileError, CompilerNotFoundError: no kernel can be built for this model and GPU.
    """
    _log.info("backend %s on %s: %s", selection.backend, selection.device, selection.reason)
    spec = source.spec
    plan = plan_weights(spec)
    if selection.backend == "reference":
        return ReferenceBackend(spec, plan, source, max_seq_len, progress=progress)
    if selection.backend == "torch":
        return TorchBackend(spec, plan, source, selection.device, max_seq_len, progress=progress)
    # Imported here: the code generator and the compilers are of no use to the other backends.
    from jitmk.engine.megakernel import MegakernelBackend

    assert selection.gpu is not None
    return MegakernelBackend(
        spec, plan, source, selection.gpu, max_seq_len=max_seq_len, settings=settings, progress=progress
    )


def _parse_device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device={device!r} is not a device; write cpu, cuda or cuda:N") from error
    if parsed.type not in ("cpu", "cuda"):
        raise DeviceError(f"device={device!r} is not supported; jitmk runs on cpu, cuda or cuda:N")
    return parsed


def _select_torch(wanted: torch.device | None) -> Selection:
    if wanted is None:
        usable = _torch_without_cuda() is None
        return Selection("torch", torch.device("cuda" if usable else "cpu"), "asked for")
    if wanted.type == "cuda":
        obstacle = _torch_without_cuda()
        if obstacle is not None:
            raise DeviceError(f"device={str(wanted)!r} cannot be used: {obstacle}")
        if (wanted.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"there is no {wanted}: torch sees {torch.cuda.device_count()} GPUs, counted from 0")
    return Selection("torch", wanted, "asked for")


def _select_auto(wanted: torch.device | None) -> Selection:
    if wanted is not None and wanted.type == "cpu":
        return Selection("reference", wanted, "device='cpu' was asked for, and the megakernel needs a GPU")
    try:
        return _megakernel(wanted, "")
    except DeviceError as error:
        if wanted is not None:
            raise
        # One line: without the advice, which has been followed, and without what the Python package said.
        why = str(error).removesuffix(NEEDED).replace(f" ({error.__cause__})", "").rstrip(". ")
        return Selection("reference", torch.device("cpu"), f"the megakernel cannot run here: {why}")


def _megakernel(wanted: torch.device | None, reason: str) -> Selection:
    """Raises DeviceError where driver, GPU or torch rule the megakernel out."""
    gpu = Device.open(None if wanted is None else wanted.index)
    obstacle = _torch_without_cuda()
    if obstacle is not None:
        raise DeviceError(f"there is {gpu}, but {obstacle}")
    return Selection("megakernel", torch.device("cuda", gpu.index), reason or f"there is {gpu}", gpu)


def _torch_without_cuda() -> str | None:
    """Why torch cannot use a GPU here; None if it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install a build with CUDA"
    with warnings.catch_warnings():
        # torch warns where it finds a driver that it cannot use; the reason given here says as much.
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    return None if available else "torch finds no GPU that it can use (no driver, or one that is too old for it)"
