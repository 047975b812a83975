"""The kernel that measures the stream ceiling: the bulk copies of the megakernel's loader, and nothing else."""

from __future__ import annotations

import ctypes

from jitmk.arch import GpuArch
from jitmk.codegen.abi import Field
from jitmk.codegen.render import environment, inline_headers
from jitmk.resources import headers_dir

STREAM_KERNEL_NAME = "jitmk_stream"

STREAM_FIELDS = (
    Field("data", ctypes.c_uint64, "const unsigned char*", "what is read, once"),
    Field("chunks", ctypes.c_int64, "i64", "how many chunks of it"),
)

CHUNK_BYTES = 16384
_BARRIER_BYTES = 1024


class StreamParams(ctypes.Structure):
    """The kernel's only parameter, passed by value. Fields as in STREAM_FIELDS."""

    _fields_ = [(field.name, field.host) for field in STREAM_FIELDS]


def ring_chunks(arch: GpuArch) -> int:
    """Chunks that fit a block's shared memory."""
    return (arch.shared_bytes_per_block - _BARRIER_BYTES) // CHUNK_BYTES


def render_stream(arch: GpuArch) -> str:
    """The CUDA source of the stream kernel for a GPU."""
    template = environment().get_template("stream.cu.j2")
    rendered = template.render(
        chunk_bytes=CHUNK_BYTES,
        ring_chunks=ring_chunks(arch),
        params=STREAM_FIELDS,
        kernel_name=STREAM_KERNEL_NAME,
    )
    return inline_headers(rendered, headers_dir(), "templates/stream.cu.j2")
