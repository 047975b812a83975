// The watchdog: one warp that sleeps until the CTA is done, or until it has stood still for too long.
#pragma once
#include "jitmk/vm/shared.cuh"

namespace jitmk::vm {

// Where all working warps are, as one number that changes whenever one of them goes on.
template <class G>
__device__ __forceinline__ u64 progress(typename G::Shared& shared) {
  u64 sum = 0;
  for (int w = 0; w < WORKING_WARPS; w++) sum = sum * 31 + atomicOr(&shared.record[w].place, 0);
  return sum;
}

// Tells the host where every warp of this SM stands and what it waits for.
template <class G>
__device__ __forceinline__ void write_report(const Params& p, typename G::Shared& shared) {
  volatile u32* out = p.report;
  out[isa::REPORT_SM] = blockIdx.x;
  for (int w = 0; w < WORKING_WARPS; w++) {
    out[isa::REPORT_WARPS + 2 * w] = atomicOr(&shared.record[w].place, 0);
    out[isa::REPORT_WARPS + 2 * w + 1] = atomicOr(&shared.record[w].wait, 0);
  }
  ptx::fence_system();
  out[isa::REPORT_VALID] = 1;
  ptx::fence_system();
}

// One lane. Past the deadline the first SM to notice reports; every SM then leaves.
template <class G>
__device__ __forceinline__ void watch(const Params& p, typename G::Shared& shared) {
  constexpr u32 NAP_NS = 1000000;
  u64 last = ~0ull, since = 0;
  while (!ptx::mbarrier_try_wait(&shared.finished, 0, NAP_NS)) {
    const u64 now = ptx::global_timer(), current = progress<G>(shared);
    if (current != last) last = current, since = now;
    const bool elsewhere = ptx::load_relaxed_gpu(p.halt) != 0;
    if (!elsewhere && now - since < p.deadline_ns) continue;
    if (ptx::compare_and_swap_gpu(p.halt, 0, 1) == 0) write_report<G>(p, shared);
    atomicExch(&shared.leave, 1);
    return;
  }
}

}  // namespace jitmk::vm
