// Barriers of a CTA that have a number (PTX ISA, "barrier{.cta}"). Whole warps call these.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

// Waits until THREADS threads have come; what they wrote to memory before is visible after.
template <int NUMBER, int THREADS>
__device__ __forceinline__ void barrier_sync() {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"n"(NUMBER), "n"(THREADS) : "memory");
}

// Counts as having come, but does not wait.
template <int NUMBER, int THREADS>
__device__ __forceinline__ void barrier_arrive() {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"n"(NUMBER), "n"(THREADS) : "memory");
}

}  // namespace jitmk::ptx
