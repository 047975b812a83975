"""One GPU: what it is, what it has, and its primary context, which torch uses as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from jitmk.arch import GpuArch
from jitmk.cuda.driver import NEEDED, api, check, driver_version
from jitmk.errors import DeviceError


@dataclass(frozen=True)
class Clocks:
    """Highest clocks and width of the memory bus, as the driver reports them."""

    sm_khz: int
    memory_khz: int
    bus_bits: int


class Device:
    """A GPU that jitmk can run on. Asking for its properties creates no context on it.

    Attributes:
        index: ordinal of the device, as torch counts; name: what the driver calls it.
        arch: its architecture, with the SMs, shared memory, registers and L2 that it really has.
        total_bytes: its memory; clocks: its clocks; driver: CUDA version that the driver supports.
    """

    def __init__(self, index: int, handle: Any, arch: GpuArch) -> None:
        driver = api()
        self.index = index
        self.arch = arch
        self.name: str = _text(check(driver.cuDeviceGetName(256, handle), "asking for the GPU's name"))
        self.total_bytes = int(check(driver.cuDeviceTotalMem(handle), "asking for the GPU's memory"))
        self.driver = driver_version()
        self.clocks = Clocks(
            sm_khz=_attribute(handle, "CLOCK_RATE"),
            memory_khz=_attribute(handle, "MEMORY_CLOCK_RATE"),
            bus_bits=_attribute(handle, "GLOBAL_MEMORY_BUS_WIDTH"),
        )
        self._handle = handle
        self._context: Any = None
        self._current_context = driver.cuCtxGetCurrent

    @classmethod
    def open(cls, index: int | None = None) -> Device:
        """The GPU of that index; None takes the one whose context is current, else the first.

        Raises:
            DeviceError: there is no driver, no such GPU, or it is not of a supported architecture.
        """
        driver = api()
        count = int(check(driver.cuDeviceGetCount(), "counting the GPUs"))
        if count == 0:
            raise DeviceError(f"there is no GPU on this machine, or CUDA_VISIBLE_DEVICES hides it. {NEEDED}")
        if index is None:
            index = _current_index(driver)
        if not 0 <= index < count:
            raise DeviceError(f"there is no GPU {index}: the driver has {count}, counted from 0")
        handle = check(driver.cuDeviceGet(index), f"opening GPU {index}")
        return cls(index, handle, _arch(handle, index))

    @property
    def context(self) -> Any:
        """The primary context of this GPU, retained when it is first asked for."""
        if self._context is None:
            self._context = check(api().cuDevicePrimaryCtxRetain(self._handle), f"taking the context of {self}")
        return self._context

    def is_current(self) -> bool:
        """Whether this GPU's context is the current one of this thread, as far as the driver can say.

        It is on a thread that has worked on this GPU with torch, until that makes another GPU current. A thread that
        has not yet used CUDA has no context. Asking costs a tenth of what entering `current` does.
        """
        status, context = self._current_context()
        return bool(status == 0 and context == self._context)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU's context the current one of this thread, and put back what was there before."""
        driver = api()
        before = check(driver.cuCtxGetCurrent(), "asking for the current context")
        if int(before) == int(self.context):
            yield
            return
        check(driver.cuCtxPushCurrent(self.context), f"entering the context of {self}")
        try:
            yield
        finally:
            check(driver.cuCtxPopCurrent(), f"leaving the context of {self}")

    def memory(self) -> tuple[int, int]:
        """Free and total memory of the GPU, in bytes."""
        with self.current():
            free, total = check(api().cuMemGetInfo(), f"asking for the memory of {self}")
        return int(free), int(total)

    def synchronize(self) -> None:
        """Wait for everything on this GPU; raises DeviceError for what went wrong there."""
        with self.current():
            check(api().cuCtxSynchronize(), f"waiting for {self}")

    def close(self) -> None:
        """Give the context back. It lives on while others, such as torch, hold it."""
        if self._context is not None:
            self._context = None
            check(api().cuDevicePrimaryCtxRelease(self._handle), f"giving back the context of {self}")

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name}, {self.arch.name}, {self.arch.sm_count} SMs)"


def _current_index(driver: Any) -> int:
    """Index of the device whose context is current on this thread, or 0."""
    if int(check(driver.cuCtxGetCurrent(), "asking for the current context")) == 0:
        return 0
    return int(check(driver.cuCtxGetDevice(), "asking for the current device"))


def _arch(handle: Any, index: int) -> GpuArch:
    """The architecture of a device with the sizes that the driver reports."""
    major = _attribute(handle, "COMPUTE_CAPABILITY_MAJOR")
    minor = _attribute(handle, "COMPUTE_CAPABILITY_MINOR")
    try:
        known = GpuArch.from_compute_capability(major, minor)
    except DeviceError as error:
        name = _text(check(api().cuDeviceGetName(256, handle), "asking for the GPU's name"))
        raise DeviceError(f"GPU {index} ({name}) cannot run the megakernel: {error}. {NEEDED}") from error
    if not _attribute(handle, "COOPERATIVE_LAUNCH"):
        raise DeviceError(f"GPU {index} does not support cooperative launches here. {NEEDED}")
    return replace(
        known,
        sm_count=_attribute(handle, "MULTIPROCESSOR_COUNT"),
        shared_bytes_per_block=_attribute(handle, "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        registers_per_sm=_attribute(handle, "MAX_REGISTERS_PER_MULTIPROCESSOR"),
        l2_bytes=_attribute(handle, "L2_CACHE_SIZE"),
    )


def _attribute(handle: Any, name: str) -> int:
    driver = api()
    attribute = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(check(driver.cuDeviceGetAttribute(attribute, handle), f"asking for {name}"))


def _text(name: bytes) -> str:
    return name.split(b"\0")[0].decode("utf-8", "replace")
