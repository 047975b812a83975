"""Host memory that the GPU writes into: tokens as they are made, and records of what went wrong.

Pinned and mapped, so a store of the kernel (followed by a system-scope fence) is seen by the host while the kernel is
still running, without a copy.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, TypeVar

from jitmk.cuda.device import Device
from jitmk.cuda.driver import api, check
from jitmk.errors import DeviceError

_Value = TypeVar("_Value", bound="ctypes._SimpleCData[Any] | ctypes.Structure")


class HostBuffer:
    """Zeroed, pinned host memory with an address on the GPU.

    Attributes:
        size: bytes; address: where the host sees it; device_pointer: where the GPU sees it.
    """

    def __init__(self, device: Device, size: int) -> None:
        """Allocate ``size`` bytes, reachable from ``device``; raises DeviceMemoryError where the host has none left."""
        if size < 1:
            raise DeviceError(f"a host buffer has at least 1 byte, not {size}")
        driver = api()
        flags = driver.CU_MEMHOSTALLOC_PORTABLE | driver.CU_MEMHOSTALLOC_DEVICEMAP
        self.size = size
        with device.current():
            self.address = int(check(driver.cuMemHostAlloc(size, flags), f"pinning {size} bytes of host memory"))
            # From here on the memory is given back even if a later line fails or nobody calls close().
            self._free = weakref.finalize(self, _free, device, self.address)
            self._free.atexit = False
            pointer = driver.cuMemHostGetDevicePointer(self.address, 0)
            self.device_pointer = int(check(pointer, "asking for the GPU's address of pinned memory"))
        ctypes.memset(self.address, 0, size)

    def array(self, kind: type[_Value], count: int, offset: int = 0) -> ctypes.Array[Any]:
        """``count`` values of a ctypes ``kind`` at byte ``offset``, as a view: it must not be used after close().

        Raises:
            DeviceError: the buffer is closed, or the values do not lie inside it.
        """
        if not self._free.alive:
            raise DeviceError("the host buffer is closed")
        end = offset + count * ctypes.sizeof(kind)
        if offset < 0 or count < 1 or end > self.size:
            raise DeviceError(f"{count} values at byte {offset} end at byte {end}, but the buffer has {self.size}")
        view: ctypes.Array[Any] = (kind * count).from_address(self.address + offset)
        return view

    def close(self) -> None:
        """Give the memory back. No kernel may still be writing to it. Closing twice does nothing."""
        self._free()

    def __enter__(self) -> HostBuffer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _free(device: Device, address: int) -> None:
    with device.current():
        check(api().cuMemFreeHost(address), "giving back pinned memory")
