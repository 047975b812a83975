// Bulk copies, global to shared (PTX ISA, "Data Movement and Conversion Instructions: cp.async.bulk").
#pragma once
#include "jitmk/ptx/mbarrier.cuh"

namespace jitmk::ptx {

// Weights and old KV are read once a step: they must not push the words that SMs exchange out of L2.
__device__ __forceinline__ u64 evict_first_policy() {
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Both addresses and `bytes` are multiples of 16. Completes on `b`.
__device__ __forceinline__ void bulk_load(void* to, const void* from, int bytes, Barrier* b, u64 policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(b)), "l"(policy)
               : "memory");
}

}  // namespace jitmk::ptx
