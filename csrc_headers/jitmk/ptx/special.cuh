// Special registers and control (PTX ISA, "Special Registers", "exit").
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

// Nanoseconds; ticks coarsely, which is enough for a deadline.
__device__ __forceinline__ u64 global_timer() {
  u64 t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

// Cycles of this SM.
__device__ __forceinline__ u64 clock() {
  u64 t;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(t));
  return t;
}

// The same value, of which the compiler knows nothing: what follows from it is computed where it is needed, instead of once
// for all instructions, in registers that are then missing elsewhere.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

[[noreturn]] __device__ __forceinline__ void exit_thread() {
  asm volatile("exit;");
  __builtin_unreachable();
}

}  // namespace jitmk::ptx
