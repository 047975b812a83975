// What every role of a CTA knows, and what happens when a wait does not end.
#pragma once
#include "jitmk/ptx/fence.cuh"
#include "jitmk/ptx/mbarrier.cuh"
#include "jitmk/ptx/special.cuh"
#include "jitmk/vm/words.cuh"

namespace jitmk::vm {

using isa::Params;
using isa::Wait;

constexpr int CONSUMER_WARPS = isa::CONSUMER_WARPS;
constexpr int LOADER_WARP = CONSUMER_WARPS;
constexpr int STORER_WARP = CONSUMER_WARPS + 1;
constexpr int THREADS = (CONSUMER_WARPS + 2) * WARP_LANES;

// One instruction of a queue, spread over the lanes of a warp: lane i holds word i.
struct Instruction {
  int word;

  __device__ __forceinline__ int operator[](int index) const { return __shfl_sync(ALL_LANES, word, index); }
  __device__ __forceinline__ int variant() const { return (*this)[isa::VARIANT]; }
};

// A role's place in the step, for its own arithmetic and for reports.
template <class G>
struct Context {
  const Params& params;
  typename G::Shared& shared;
  int warp, lane;
  int step = 0, instruction = 0;

  __device__ __forceinline__ int sm() const { return blockIdx.x; }
  __device__ __forceinline__ int position() const { return params.position + step; }
  __device__ __forceinline__ u32 epoch() const { return params.epoch + step; }
};

// Who waited for what, for the host. By value, so that nothing that the fast path uses has an address.
__device__ __noinline__ void write_report(volatile u32* out, u32 step, u32 instruction, u32 wait, u32 index, u32 expected, u32 seen) {
  out[isa::REPORT_SM] = blockIdx.x;
  out[isa::REPORT_WARP] = threadIdx.x / WARP_LANES;
  out[isa::REPORT_STEP] = step;
  out[isa::REPORT_INSTRUCTION] = instruction;
  out[isa::REPORT_WAIT] = wait;
  out[isa::REPORT_INDEX] = index;
  out[isa::REPORT_EXPECTED] = expected;
  out[isa::REPORT_SEEN] = seen;
  ptx::fence_system();
  out[isa::REPORT_VALID] = 1;
  ptx::fence_system();
}

// Counts the turns of a wait. Past the deadline the first thread to notice writes the report, and everybody leaves.
template <class G>
class Watchdog {
 public:
  __device__ __forceinline__ Watchdog(const Context<G>& context, Wait wait, u32 index, u32 expected)
      : context_(context), wait_(wait), index_(index), expected_(expected) {}

  // True once the launch has been given up.
  __device__ __forceinline__ bool must_leave(u32 seen) {
    if ((++turns_ & (TURNS_PER_LOOK - 1)) != 0) return false;
    const Params& p = context_.params;
    if (ptx::load_relaxed_gpu(p.halt) != 0) return true;
    const u64 now = ptx::global_timer();
    if (started_ == 0) started_ = now;
    if (now - started_ < p.deadline_ns) return false;
    if (ptx::compare_and_swap_gpu(p.halt, 0, 1) == 0)
      write_report(p.report, context_.step, context_.instruction, static_cast<u32>(wait_), index_, expected_, seen);
    return true;
  }

  __device__ __forceinline__ void check(u32 seen) {
    if (must_leave(seen)) ptx::exit_thread();
  }

 private:
  static constexpr u32 TURNS_PER_LOOK = 256;

  const Context<G>& context_;
  Wait wait_;
  u32 index_, expected_;
  u32 turns_ = 0;
  u64 started_ = 0;
};

template <class G>
__device__ __forceinline__ void wait_barrier(const Context<G>& context, ptx::Barrier* barrier, u32 parity, Wait wait, u32 index) {
  if (ptx::mbarrier_try_wait(barrier, parity)) return;
  Watchdog<G> watchdog(context, wait, index, parity);
  while (!ptx::mbarrier_try_wait(barrier, parity)) watchdog.check(parity ^ 1);
}

// One word, polled until it carries `epoch`.
template <class G>
__device__ __forceinline__ u32 wait_word(const Context<G>& context, const u64* word, u32 epoch, Wait wait, u32 index) {
  u64 w = ptx::load_relaxed_gpu(word);
  if (word_epoch(w) == epoch) return word_payload(w);
  Watchdog<G> watchdog(context, wait, index, epoch);
  do {
    watchdog.check(word_epoch(w));
    w = ptx::load_relaxed_gpu(word);
  } while (word_epoch(w) != epoch);
  return word_payload(w);
}

}  // namespace jitmk::vm
