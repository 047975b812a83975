"""GpuArch: what generated code may rely on about a GPU, as a plain value.

Everything up to and including the cubin is built from this value alone, so a kernel for any supported GPU can be built
on a machine that has none. On a machine with a GPU, ``jitmk.cuda.device`` fills in what the driver reports.

Sources: CUDA C++ Programming Guide, "Features and Technical Specifications" (shared memory and registers by compute
capability); NVIDIA Blackwell and Hopper tuning guides; device properties as the driver reports them (SMs, L2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from jitmk.errors import DeviceError


class Feature(Enum):
    """A capability that opcodes may select on."""

    MMA_BF16 = "mma_bf16"  # mma.sync.m16n8k16 with bf16 operands
    BULK_COPY = "bulk_copy"  # cp.async.bulk completing on an mbarrier
    CLUSTERS = "clusters"  # thread block clusters and distributed shared memory
    WGMMA = "wgmma"  # wgmma.mma_async, only on sm_90a
    TCGEN05 = "tcgen05"  # tcgen05.* and tensor memory, only on sm_100a and sm_103a


_EVERYWHERE = frozenset({Feature.MMA_BF16, Feature.BULK_COPY, Feature.CLUSTERS})


@dataclass(frozen=True)
class GpuArch:
    """A GPU architecture with the sizes that a kernel is specialised to.

    Attributes:
        name: the exact compile target, such as ``"sm_90a"``.
        sm_count: streaming multiprocessors; the megakernel runs one CTA on each.
        shared_bytes_per_block: most shared memory that one block can have, static and dynamic together, with opt-in.
        registers_per_sm: 32-bit registers of one SM.
        l2_bytes: size of the L2 cache.
        features: what the target's instruction set has.
    """

    name: str
    sm_count: int
    shared_bytes_per_block: int
    registers_per_sm: int
    l2_bytes: int
    features: frozenset[Feature]

    def __post_init__(self) -> None:
        for field in ("sm_count", "shared_bytes_per_block", "registers_per_sm", "l2_bytes"):
            value = getattr(self, field)
            if value < 1:
                raise DeviceError(f"GpuArch.{field} is {value} for {self.name}, but must be at least 1")

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor compute capability: (9, 0) for sm_90a, (10, 3) for sm_103a."""
        digits = self.name.removeprefix("sm_").rstrip("a")
        return int(digits[:-1]), int(digits[-1])

    @classmethod
    def parse(cls, name: str, *, sm_count: int | None = None) -> GpuArch:
        """The architecture of that name, with the SMs of the common product unless ``sm_count`` says otherwise.

        Raises:
            DeviceError: ``name`` is not one of the supported exact targets, or ``sm_count`` is below 1.
        """
        known = _KNOWN.get(name)
        if known is None:
            raise DeviceError(_refusal(name))
        return known if sm_count is None else replace(known, sm_count=sm_count)

    @classmethod
    def from_compute_capability(cls, major: int, minor: int) -> GpuArch:
        """The architecture of a compute capability, with default sizes; raises DeviceError where none is supported."""
        for known in _KNOWN.values():
            if known.compute_capability == (major, minor):
                return known
        raise DeviceError(_refusal(f"compute capability {major}.{minor}"))

    @staticmethod
    def supported() -> tuple[str, ...]:
        """Names of the supported targets, oldest first."""
        return tuple(_KNOWN)


def _refusal(name: str) -> str:
    """Why ``name`` is not a supported architecture."""
    hint = ""
    if f"{name}a" in _KNOWN:
        hint = f" (write {name}a: the kernels use instructions of the architecture-specific target)"
    return f"GPU architecture {name!r} is not supported{hint}; supported are {', '.join(_KNOWN)}"


def _known(
    name: str, sm_count: int, l2_bytes: int, *extra: Feature, shared_bytes_per_block: int = 227 * 1024
) -> GpuArch:
    return GpuArch(
        name=name,
        sm_count=sm_count,
        shared_bytes_per_block=shared_bytes_per_block,
        registers_per_sm=65536,
        l2_bytes=l2_bytes,
        features=_EVERYWHERE | set(extra),
    )


# SMs and L2 are those of one product of each architecture, for building without a GPU.
_KNOWN: dict[str, GpuArch] = {
    arch.name: arch
    for arch in (
        _known("sm_90a", 132, 50 * 2**20, Feature.WGMMA),  # H100 SXM, H200
        _known("sm_100a", 148, 132_644_864, Feature.TCGEN05),  # B200
        _known("sm_103a", 152, 135_528_448, Feature.TCGEN05),  # GB300
        _known("sm_120a", 170, 96 * 2**20, shared_bytes_per_block=99 * 1024),  # GeForce RTX 5090
    )
}
