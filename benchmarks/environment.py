"""What a measurement was made with: device, driver, clocks, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jitmk import __version__
from jitmk.cuda.device import Device

_PACKAGES = ("torch", "transformers", "cuda-bindings", "nvidia-cuda-nvrtc-cu12")
_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,driver_version"


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
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "uncommitted_changes": bool(_output("git", "-C", str(Path(__file__).parent), "status", "--porcelain")),
    }


def _clocks(index: int) -> dict[str, str] | None:
    text = _output("nvidia-smi", f"--id={index}", f"--query-gpu={_CLOCKS}", "--format=csv,noheader")
    return None if text is None else dict(zip(_CLOCKS.split(","), text.split(", "), strict=False))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
