// Special registers and control (PTX ISA, "Special Registers", "exit", "setmaxnreg").
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

// Has an address or a number worked out here, and not where it is wanted.
template <class T>
__device__ __forceinline__ void settle(T*& address) {
  asm volatile("" : "+l"(address));
}
__device__ __forceinline__ void settle(float& x) { asm volatile("" : "+f"(x)); }
__device__ __forceinline__ void settle(u32& x) { asm volatile("" : "+r"(x)); }
__device__ __forceinline__ void settle(int& x) { asm volatile("" : "+r"(x)); }

[[noreturn]] __device__ __forceinline__ void exit_thread() {
  asm volatile("exit;");
  __builtin_unreachable();
}

// Shared memory at an address that the compiler must keep. One that it knows it computes anew wherever it needs it, from the
// rank of the CTA in its cluster, which takes 30 cycles.
__device__ __forceinline__ unsigned char* settled(unsigned char* shared) {
  u32 address = static_cast<u32>(__cvta_generic_to_shared(shared));
  asm volatile("" : "+r"(address));
  return static_cast<unsigned char*>(__cvta_shared_to_generic(address));
}

// All threads of four neighbouring warps call these: from here on a thread has so many registers. To take waits for others to
// leave.
template <int COUNT>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

}  // namespace jitmk::ptx
