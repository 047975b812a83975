"""A cubin on a GPU, and the kernels in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jitmk.cuda.device import Device
from jitmk.cuda.driver import api, check
from jitmk.errors import DeviceError

# The driver is older than the compiler, or the cubin is for another GPU, or is none.
_UNLOADABLE = ("NO_BINARY_FOR_GPU", "INVALID_IMAGE", "UNSUPPORTED_PTX_VERSION", "INVALID_SOURCE")


@dataclass(frozen=True)
class Residency:
    """Whether a grid fits on the GPU all at once, which a cooperative launch needs."""

    blocks_per_sm: int
    sm_count: int

    @property
    def blocks(self) -> int:
        """How many blocks can be resident together."""
        return self.blocks_per_sm * self.sm_count


class Module:
    """A loaded cubin. Unload it with :meth:`close` once nothing that it launched is running."""

    def __init__(self, device: Device, cubin: bytes, arch: str) -> None:
        """Load ``cubin``, which was compiled for the exact target ``arch``, on ``device``.

        Raises:
            DeviceError: the cubin is for another architecture, or this driver cannot load it.
        """
        if arch != device.arch.name:
            raise DeviceError(f"the kernel was compiled for {arch}, but {device} needs {device.arch.name}")
        driver = api()
        self.device = device
        with device.current():
            result = driver.cuModuleLoadData(cubin)
        if int(result[0]) in {int(getattr(driver.CUresult, f"CUDA_ERROR_{name}")) for name in _UNLOADABLE}:
            version = ".".join(map(str, device.driver))
            raise DeviceError(
                f"the driver (CUDA {version}) cannot load the kernel for {arch} on {device}: {result[0].name}. If the "
                "compiler is newer than the driver, update the driver, or set JITMK_USE_NVRTC=1 to compile with the "
                "NVRTC of CUDA 12; otherwise run jitmk-cache verify"
            )
        self._handle = check(result, f"loading the kernel on {device}")

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name, which must have C linkage; raises DeviceError where there is none."""
        with self.device.current():
            result = api().cuModuleGetFunction(self._handle, name.encode())
        return Kernel(self, name, check(result, f"looking for the kernel {name!r} in the cubin"))

    def close(self) -> None:
        """Unload the cubin; its kernels cannot be used any more."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            with self.device.current():
                check(api().cuModuleUnload(handle), "unloading the kernel")

    def __enter__(self) -> Module:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Kernel:
    """One ``__global__`` function, as the driver sees it.

    Attributes:
        name: its name; handle: the driver's handle for it.
        registers: registers a thread; static_shared: bytes of static shared memory a block.
        local_bytes: bytes of local memory (stack and spills) a thread; max_threads: most threads a block.
    """

    def __init__(self, module: Module, name: str, handle: Any) -> None:
        self.module = module
        self.name = name
        self.handle = handle
        self.registers = self._attribute("NUM_REGS")
        self.static_shared = self._attribute("SHARED_SIZE_BYTES")
        self.local_bytes = self._attribute("LOCAL_SIZE_BYTES")
        self.max_threads = self._attribute("MAX_THREADS_PER_BLOCK")

    def reserve_shared(self, dynamic_bytes: int) -> None:
        """Opt in to that much dynamic shared memory a block, in bytes.

        Raises:
            DeviceError: together with the static shared memory it is more than a block of this GPU can have.
        """
        device = self.module.device
        limit = device.arch.shared_bytes_per_block
        if self.static_shared + dynamic_bytes > limit:
            raise DeviceError(
                f"the kernel {self.name} needs {self.static_shared} bytes of static and {dynamic_bytes} of dynamic "
                f"shared memory a block, but {device} has {limit}"
            )
        driver = api()
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with device.current():
            check(driver.cuFuncSetAttribute(self.handle, attribute, dynamic_bytes), "reserving shared memory")

    def residency(self, threads: int, dynamic_bytes: int) -> Residency:
        """How many blocks of ``threads`` threads and that much dynamic shared memory fit on the GPU at once."""
        device = self.module.device
        with device.current():
            blocks = check(
                api().cuOccupancyMaxActiveBlocksPerMultiprocessor(self.handle, threads, dynamic_bytes),
                f"asking how many blocks of {self.name} fit on an SM",
            )
        return Residency(int(blocks), device.arch.sm_count)

    def require_resident(self, blocks: int, threads: int, dynamic_bytes: int) -> None:
        """Raise DeviceError unless all blocks of such a grid can be on the GPU at once."""
        fits = self.residency(threads, dynamic_bytes)
        if blocks > fits.blocks:
            raise DeviceError(
                f"{blocks} blocks of the kernel {self.name} must be on {self.module.device} at once, but it holds "
                f"{fits.blocks}: a block has {threads} threads of {self.registers} registers and "
                f"{self.static_shared + dynamic_bytes} bytes of shared memory"
            )

    def _attribute(self, name: str) -> int:
        driver = api()
        attribute = getattr(driver.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}")
        with self.module.device.current():
            return int(check(driver.cuFuncGetAttribute(attribute, self.handle), f"asking for {name} of {self.name}"))
