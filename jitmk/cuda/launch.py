"""Launching a kernel again and again at little cost.

A kernel takes one struct by value as its single ``const __grid_constant__`` parameter. Its host side is a
:class:`ctypes.Structure` with the same layout, packed once. Between launches the caller changes fields in place: the
driver copies the struct while it launches, so a change never reaches a launch that has already returned.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

from jitmk.cuda.driver import api, check
from jitmk.cuda.module import Kernel
from jitmk.errors import DeviceError

# The most that kernel parameters may take (CUDA C++ Programming Guide, "__global__ Function Parameters", since 12.1).
_MAX_PARAMETER_BYTES = 32764


class Launcher:
    """A kernel with its grid, its shared memory and its parameters, ready to launch.

    Attributes:
        parameters: the struct that the next launch passes; change its fields, do not replace it.
    """

    def __init__(
        self,
        kernel: Kernel,
        parameters: ctypes.Structure,
        *,
        blocks: int,
        threads: int,
        dynamic_shared: int = 0,
        cooperative: bool = True,
    ) -> None:
        """Reserve the shared memory and check that the grid fits.

        Args:
            kernel: a kernel that takes one struct by value.
            parameters: that struct.
            blocks: CTAs of the grid, one-dimensional; for the megakernel the SMs of the GPU.
            threads: threads of a CTA.
            dynamic_shared: bytes of dynamic shared memory a CTA.
            cooperative: whether all CTAs must be resident at once.

        Raises:
            DeviceError: the struct is too big, a block has too many threads or too much shared memory, or the grid
                cannot be resident all at once.
        """
        size = ctypes.sizeof(parameters)
        if size > _MAX_PARAMETER_BYTES:
            raise DeviceError(f"kernel parameters of {size} bytes; a kernel takes at most {_MAX_PARAMETER_BYTES}")
        if not 1 <= threads <= kernel.max_threads:
            raise DeviceError(
                f"the kernel {kernel.name} takes 1 to {kernel.max_threads} threads a block, not {threads}"
            )
        kernel.reserve_shared(dynamic_shared)
        if cooperative:
            kernel.require_resident(blocks, threads, dynamic_shared)
        self.parameters = parameters
        self._kernel = kernel
        self._device = kernel.module.device
        self._pointers = (ctypes.c_void_p * 1)(ctypes.addressof(parameters))
        self._arguments = ctypes.addressof(self._pointers)
        driver = api()
        self._config = _config(driver, blocks, threads, dynamic_shared, cooperative)
        self._stream_of = driver.CUstream
        self._run = partial(driver.cuLaunchKernelEx, self._config, kernel.handle, self._arguments, 0)
        self._stream = 0

    def launch(self, stream: int) -> None:
        """Launch on a raw CUstream, such as ``torch.cuda.current_stream().cuda_stream``; returns at once.

        Raises:
            DeviceError: the driver refuses, or an earlier launch on this GPU failed.
        """
        if stream != self._stream:
            self._config.hStream = self._stream_of(stream)
            self._stream = stream
        if self._device.is_current():
            result = self._run()
        else:  # a thread that has not used this GPU yet, or used another since
            with self._device.current():
                result = self._run()
        if result[0] != 0:
            check(result, f"launching {self._kernel.name} on {self._device}")


def _config(driver: Any, blocks: int, threads: int, dynamic_shared: int, cooperative: bool) -> Any:
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = dynamic_shared
    config.hStream = driver.CUstream(0)
    if cooperative:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        value = driver.CUlaunchAttributeValue()
        value.cooperative = 1
        attribute.value = value
        config.attrs = [attribute]
        config.numAttrs = 1
    return config
