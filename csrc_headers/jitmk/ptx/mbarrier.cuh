// Barriers in shared memory (PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier").
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

using Barrier = u64;

__device__ __forceinline__ u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void mbarrier_init(Barrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}

// Arrives and announces that `bytes` of bulk copies will complete on the barrier.
__device__ __forceinline__ void mbarrier_arrive_expect(Barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}

// Release at CTA scope: what this thread wrote before is visible to whoever waits for the phase.
__device__ __forceinline__ void mbarrier_arrive(Barrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

// As many arrivals at once.
__device__ __forceinline__ void mbarrier_arrive(Barrier* b, int arrivals) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}

// Whether the phase of this parity has completed; may suspend the thread for a short while. Acquire at CTA scope.
__device__ __forceinline__ bool mbarrier_try_wait(Barrier* b, u32 parity) {
  u32 done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(b)), "r"(parity)
      : "memory");
  return done != 0;
}

// Whether it has completed by now.
__device__ __forceinline__ bool mbarrier_test_wait(Barrier* b, u32 parity) {
  u32 done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(b)), "r"(parity)
      : "memory");
  return done != 0;
}

// As mbarrier_try_wait, suspended for up to about `nanoseconds`.
__device__ __forceinline__ bool mbarrier_try_wait(Barrier* b, u32 parity, u32 nanoseconds) {
  u32 done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2, %3;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(b)), "r"(parity), "r"(nanoseconds)
      : "memory");
  return done != 0;
}

}  // namespace jitmk::ptx
