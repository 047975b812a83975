"""Small kernels for the compilers, and a compiler that only pretends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jitmk.arch import GpuArch
from jitmk.errors import CompileError
from jitmk.jit.compiler import CompileResult, KernelInfo, common_options

# Uses an instruction of the exact targets (a bulk copy on an mbarrier), static shared memory, and no header.
KERNEL = """
extern "C" __global__ void copy_through_shared(const float* from, float* to, int n) {
  __shared__ alignas(16) float staged[256];
  __shared__ alignas(8) unsigned long long arrived;
  const unsigned barrier = static_cast<unsigned>(__cvta_generic_to_shared(&arrived));
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(staged));
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 1024;" ::"r"(barrier) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 1024, [%2];"
                 ::"r"(target), "l"(from), "r"(barrier) : "memory");
  }
  __syncthreads();
  to[threadIdx.x] = staged[threadIdx.x] + static_cast<float>(n);
}
"""

# Volatile accesses stay in order, so more values are alive at once than there are registers for them.
SPILLING_KERNEL = """
extern "C" __global__ void __launch_bounds__(1024) spill(volatile float* data) {
  float value[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) value[i] = data[threadIdx.x + i * 1024];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) data[threadIdx.x + i * 1024] = value[95 - i] * value[i * 37 % 96] + value[i];
}
"""

BROKEN_KERNEL = 'extern "C" __global__ void broken(float* to) {\n  to[0] = no_such_name;\n}\n'


class PretendCompiler:
    """Turns a source into bytes that depend on it, and notes each compile in a file, across processes."""

    name = "pretend"
    version = (99, 0)
    location = "nowhere"

    def __init__(self, notes: Path, build: str = "build 1") -> None:
        self.notes = notes
        self.build = build

    def command(self, arch: GpuArch, options: Sequence[str] = ()) -> tuple[str, ...]:
        return (self.location, *common_options(arch, options))

    def compile(self, source: str, arch: GpuArch, options: Sequence[str] = ()) -> CompileResult:
        with self.notes.open("a") as notes:
            notes.write("compiled\n")
        if "no_such_name" in source:
            raise CompileError("refused", log="line 2: no_such_name", command=self.command(arch, options))
        cubin = b"\x7fELF" + source.encode() * 10
        return CompileResult(cubin, "a log", KernelInfo(32, 1024, 0, 0), 0.5, self.command(arch, options))

    @property
    def compiles(self) -> int:
        """How often anything was compiled."""
        return len(self.notes.read_text().splitlines()) if self.notes.exists() else 0
