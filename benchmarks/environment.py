"""What a measurement was made with: device, driver, clocks, versions, commit."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jitmk import __version__
from jitmk.cuda.device import Device

_PACKAGES = ("torch", "transformers", "cuda-bindings", "nvidia-cuda-nvrtc-cu12")
_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,driver_version"
_UNDER_LOAD = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
_LONGEST_QUERY = 20.0


def describe(gpu: Device) -> dict[str, Any]:
    """Facts for the head of a result file; what cannot be found out is None."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": gpu.name,
        "arch": gpu.arch.name,
        "sms": gpu.arch.sm_count,
        "memory_bytes": gpu.total_bytes,
        "cuda_driver": ".".join(map(str, gpu.driver)),
        "clocks": _clocks(gpu.index),
        "python": platform.python_version(),
        "versions": {"jitmk": __version__} | {name: _version(name) for name in _PACKAGES},
        "commit": command_output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "uncommitted_changes": bool(command_output("git", "-C", str(Path(__file__).parent), "status", "--porcelain")),
    }


def clocks_under_load(index: int, work: Callable[[], object]) -> dict[str, str] | None:
    """Clocks, power and temperature of a GPU while `work` runs over and over; None where nvidia-smi does not say.

    Args:
        index: of the GPU.
        work: keeps the GPU busy and returns; is called at least twice, and not timed.
    """
    work()
    try:
        process = subprocess.Popen(
            _query(index, _UNDER_LOAD), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return None
    with process:
        try:
            deadline = time.monotonic() + _LONGEST_QUERY
            work()
            while process.poll() is None and time.monotonic() < deadline:
                work()
        finally:
            process.kill()  # does nothing to a process that has ended
        assert process.stdout is not None
        return _answer(_UNDER_LOAD, process.stdout.read() if process.poll() == 0 else None)


def _clocks(index: int) -> dict[str, str] | None:
    return _answer(_CLOCKS, command_output(*_query(index, _CLOCKS)))


def _query(index: int, fields: str) -> tuple[str, ...]:
    return "nvidia-smi", f"--id={index}", f"--query-gpu={fields}", "--format=csv,noheader"


def _answer(fields: str, text: str | None) -> dict[str, str] | None:
    return None if text is None else dict(zip(fields.split(","), text.strip().split(", "), strict=False))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def command_output(*command: str) -> str | None:
    """What a command prints, or None where it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
