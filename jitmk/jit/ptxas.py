"""Reads registers, shared memory and spills out of what ``ptxas -v`` writes into a compiler's log.

NVCC and NVRTC prefix the lines differently, versions add and drop fields between the commas, and a source may hold
several functions, so each number is looked for by its own words.
"""

from __future__ import annotations

import re

from jitmk.jit.compiler import KernelInfo

_REGISTERS = re.compile(r"\bUsed (\d+) registers\b(.*)")
_SHARED = re.compile(r"\b(\d+)(?:\+(\d+))? bytes smem\b")
_FRAME = re.compile(r"\b(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\b")


def parse_info(log: str) -> KernelInfo:
    """What the log says of the kernels in it; a field is None where the log says nothing about it."""
    used = list(_REGISTERS.finditer(log))
    frames = [tuple(map(int, match.groups())) for match in _FRAME.finditer(log)]
    return KernelInfo(
        registers=max((int(match[1]) for match in used), default=None),
        shared=max((_shared(match[2]) for match in used), default=None),
        spills=sum(stores + loads for _, stores, loads in frames) if frames else None,
        stack=max((stack for stack, _, _ in frames), default=None),
    )


def _shared(rest: str) -> int:
    """Bytes of static shared memory on a "Used ... registers" line; a kernel that has none is listed without it."""
    match = _SHARED.search(rest)
    return int(match[1]) + int(match[2] or 0) if match else 0
