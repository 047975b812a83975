// Fences (PTX ISA, "membar / fence").
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

// Orders ordinary accesses to shared memory with what the copy engine does there.
__device__ __forceinline__ void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Orders ordinary accesses to global memory with bulk copies.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

__device__ __forceinline__ void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

__device__ __forceinline__ void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

}  // namespace jitmk::ptx
