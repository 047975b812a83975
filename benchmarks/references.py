"""What other systems were measured at on an H200, to stand beside the records of a run. Constants, not measurements.

All of one day (2026-11-20) and one machine: an NVIDIA H200, driver 580, CUDA 13.0, batch 1, bf16, medians. Memory of
that H200 streamed at 4.5 to 4.6 TB/s; times move by some percent from one H200 to the next.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

NOTE = "measured earlier on another H200"


@dataclass(frozen=True)
class Reference:
    """One number.

    Attributes:
        system: what was measured. model: a name of `shapes.CONFIGS`.
        context: positions before the step; None for a run of many.
        us_per_token: microseconds. what: what they are the time of.
    """

    system: str
    model: str
    context: int | None
    us_per_token: float
    what: str


_MEGAKERNELS = "HazyResearch/Megakernels"
_VLLM = "vLLM 0.22.1"
_KERNEL_TIME = "kernel time"
_STEP = "a step in process, CUDA graphs"


def _line(system: str, model: str, what: str, points: dict[int, float]) -> tuple[Reference, ...]:
    return tuple(Reference(system, model, context, us, what) for context, us in points.items())


REFERENCES: tuple[Reference, ...] = (
    *_line(
        _MEGAKERNELS, "llama-3.2-1b", _KERNEL_TIME, {16: 721.0, 128: 773.0, 1024: 1171.0, 4096: 2534.0, 8192: 4340.0}
    ),
    Reference(_MEGAKERNELS, "llama-3.2-1b", None, 802.0, "its generate loop, 128 tokens"),
    *_line(_VLLM, "llama-3.2-1b", _STEP, {128: 1236.0, 1024: 1248.0, 4096: 1298.0, 8192: 1331.0}),
    *_line(_VLLM, "llama-3.1-8b", _STEP, {128: 4850.0, 1024: 4874.0, 4096: 4987.0, 8192: 5131.0}),
)


def references_of(models: Collection[str]) -> list[Reference]:
    """The references for some shapes, in the order of `REFERENCES`."""
    return [reference for reference in REFERENCES if reference.model in models]
