"""Whether a model fits: memory that is free on a device, and the refusal before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from jitmk.errors import DeviceMemoryError

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CGROUP_USE = Path("/sys/fs/cgroup/memory.current")
_CGROUP_DETAIL = Path("/sys/fs/cgroup/memory.stat")


def gigabytes(nbytes: int) -> str:
    """A size for people: "1.24 GB", "31.0 MB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}" if nbytes < 1000 * size else f"{nbytes / size:.0f} {unit}"
    return f"{nbytes / 1000:.3g} kB"


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device now; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = _available_host_memory()
    limit = _cgroup_headroom()
    known = [size for size in (available, limit) if size is not None]
    return min(known) if known else None


def require_memory(device: torch.device, needs: Mapping[str, int]) -> None:
    """Refuses what does not fit, before anything is allocated.

    Args:
        device: where the memory is needed.
        needs: bytes by what they are for, for example {"weights": ..., "KV cache": ...}.

    Raises:
        DeviceMemoryError: the sum is more than the device has free.
    """
    free = free_memory(device)
    total = sum(needs.values())
    if free is None or total <= free:
        return
    parts = ", ".join(f"{what} {gigabytes(size)}" for what, size in needs.items())
    raise DeviceMemoryError(
        f"the model needs {gigabytes(total)} on {device} ({parts}), but {gigabytes(free)} are free there; "
        "free memory, pass a smaller max_seq_len, or take a smaller model"
    )


def _available_host_memory() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_headroom() -> int | None:
    """What the container may still allocate (cgroup v2); page cache counts as free, for the kernel drops it."""
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
        if limit == "max":
            return None
        used = int(_CGROUP_USE.read_text())
        detail = dict(line.split() for line in _CGROUP_DETAIL.read_text().splitlines())
        return int(limit) - used + int(detail.get("inactive_file", 0)) + int(detail.get("active_file", 0))
    except (OSError, ValueError):
        return None
