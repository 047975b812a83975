// Loads and stores with an explicit scope (PTX ISA, "Memory Consistency Model", "ld", "st").
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

struct Pair64 {
  u64 x, y;
};

__device__ __forceinline__ u64 load_relaxed_gpu(const u64* p) {
  u64 v;
  asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}

// Two neighbouring 8-byte values in one access; each is read whole, the pair need not be.
__device__ __forceinline__ Pair64 load_relaxed_gpu_pair(const u64* p) {
  Pair64 v;
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(p) : "memory");
  return v;
}

// What is stored stays in L2 while there is anything else to evict: of a large model more weights pass through L2 in a step
// than it holds, and words that had been evicted would be fetched from memory by whoever polls them next.
__device__ __forceinline__ void store_relaxed_gpu(u64* p, u64 v) {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("st.relaxed.gpu.global.L2::cache_hint.b64 [%0], %1, %2;" ::"l"(p), "l"(v), "l"(policy) : "memory");
}

__device__ __forceinline__ u32 load_acquire_gpu(const u32* p) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ u32 load_relaxed_gpu(const u32* p) {
  u32 v;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ void store_relaxed_gpu(u32* p, u32 v) { asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }

__device__ __forceinline__ void store_relaxed_system(u64* p, u64 v) {
  asm volatile("st.relaxed.sys.global.b64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

__device__ __forceinline__ void add_relaxed_gpu(u64* p, u64 v) {
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

// Stores to shared memory in lanes where `wanted`, without a branch.
__device__ __forceinline__ void store_shared_if(bool wanted, u32* p, u32 v) {
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.u32 wanted, %0, 0;\n"
      "@wanted st.volatile.shared.u32 [%1], %2;\n"
      "}" ::"r"(static_cast<u32>(wanted)),
      "r"(static_cast<u32>(__cvta_generic_to_shared(p))), "r"(v)
      : "memory");
}

// The value before; stores `v` where it was `expected`.
__device__ __forceinline__ u32 compare_and_swap_gpu(u32* p, u32 expected, u32 v) {
  u32 before;
  asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], %2, %3;" : "=r"(before) : "l"(p), "r"(expected), "r"(v) : "memory");
  return before;
}

}  // namespace jitmk::ptx
