"""The driver API, loaded when it is first needed, with its status codes turned into exceptions.

Works with cuda-python 12.9 and 13.x: only calls whose Python signature is the same in both are used.

Source: CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jitmk.errors import DeviceError, DeviceMemoryError

NEEDED = "backend='megakernel' needs a Hopper or newer NVIDIA GPU and its driver; use backend='reference' without one"


@cache
def api() -> Any:
    """The module ``cuda.bindings.driver``, initialised.

    Raises:
        DeviceError: cuda-python is not installed, or there is no driver, or it finds no GPU.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(f"cuda-python is not installed ({error}); pip install cuda-python. {NEEDED}") from error
    try:
        status = driver.cuInit(0)[0]
    except (RuntimeError, OSError) as error:
        raise DeviceError(f"there is no NVIDIA driver on this machine ({error}). {NEEDED}") from error
    if int(status) != 0:
        raise DeviceError(f"the NVIDIA driver does not start ({_describe(driver, status)}). {NEEDED}")
    return driver


def check(result: tuple[Any, ...], what: str) -> Any:
    """The value of a driver call, or None where it has none.

    Args:
        result: what a function of ``cuda.bindings.driver`` returned: its status, then its values.
        what: what was being done, for the message: ``"loading the kernel"``.

    Raises:
        DeviceMemoryError: the driver is out of memory.
        DeviceError: any other status but success.
    """
    status = result[0]
    if int(status) != 0:
        driver = api()
        kind = DeviceMemoryError if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else DeviceError
        raise kind(f"{what} failed: {_describe(driver, status)}")
    if len(result) <= 2:
        return result[1] if len(result) == 2 else None
    return result[1:]


def driver_version() -> tuple[int, int]:
    """CUDA version that the driver supports, such as (13, 0)."""
    number = int(check(api().cuDriverGetVersion(), "asking for the driver's version"))
    return number // 1000, number % 1000 // 10


def _describe(driver: Any, status: Any) -> str:
    """Name and text of a status: ``CUDA_ERROR_INVALID_VALUE (1): invalid argument``."""
    parts = []
    for ask in (driver.cuGetErrorName, driver.cuGetErrorString):
        try:
            found, text = ask(status)
        except (RuntimeError, OSError):
            found, text = status, None
        parts.append(text.decode("ascii", "replace") if int(found) == 0 and text else "unknown")
    return f"{parts[0]} ({int(status)}): {parts[1]}"
