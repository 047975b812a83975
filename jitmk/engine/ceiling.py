"""The stream ceiling: the time that a GPU needs to read so many bytes once. No decode step of them can be faster."""

from __future__ import annotations

import statistics
import time

import torch

from jitmk import jit
from jitmk.codegen.stream import CHUNK_BYTES, STREAM_KERNEL_NAME, StreamParams, render_stream, ring_chunks
from jitmk.cuda.device import Device
from jitmk.cuda.launch import Launcher
from jitmk.cuda.module import Module
from jitmk.errors import DeviceError
from jitmk.settings import Settings

_WARM_UP_SECONDS = 0.5
"""Of reading before anything counts: a GPU that was idle takes some tenths of a second to raise its clocks, and small
models were given ceilings that were 15 percent too high."""
_RUNS = 30


def measure_stream_ceiling(gpu: Device, data: torch.Tensor, nbytes: int | None = None, *, settings: Settings) -> float:
    """Microseconds to read `nbytes` from the start of `data`, the median of 30 runs.

    The kernel issues the same bulk copies as the megakernel's loader, with as many in flight as shared memory holds
    and nothing that waits for anything else. Bytes are rounded up to 16 KB chunks.

    Args:
        gpu: the GPU.
        data: contiguous tensor on it, larger than its L2; not zeros, which some GPUs read faster.
        nbytes: all of `data` when None.

    Raises:
        DeviceError: `data` is smaller than `nbytes`.
    """
    size = data.numel() * data.element_size()
    chunks = -(-(size if nbytes is None else nbytes) // CHUNK_BYTES)
    if nbytes is None:
        chunks = size // CHUNK_BYTES
    if chunks * CHUNK_BYTES > size:
        raise DeviceError(f"{nbytes} bytes should be read, but the tensor has {size}")
    kernel = jit.build(render_stream(gpu.arch), gpu.arch, settings=settings)
    parameters = StreamParams(data=data.data_ptr(), chunks=chunks)
    with Module(gpu, kernel.cubin, gpu.arch.name) as module:
        shared = ring_chunks(gpu.arch) * CHUNK_BYTES
        launcher = Launcher(
            module.kernel(STREAM_KERNEL_NAME), parameters, blocks=gpu.arch.sm_count, threads=32, dynamic_shared=shared
        )
        stream = torch.cuda.current_stream(data.device)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < _RUNS:
            warm = time.perf_counter() - begin >= _WARM_UP_SECONDS
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record(stream)
            launcher.launch(stream.cuda_stream)
            end.record(stream)
            end.synchronize()
            if warm:
                times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)
