// BARRIER: every SM waits until all have come this far.
#pragma once
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

// B is rendered from BarrierConfig; the instruction's one unit is the SM's. What the SMs' consumer warps did before, they
// all see after: the warps meet, and the fences are cumulative.
template <class B, class G>
__device__ __forceinline__ void consume_barrier(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  u64* words = context.params.words + in[isa::barrier::OUTPUT];
  const int unit = in[isa::UNIT_BEGIN];
  const u32 epoch = context.epoch();
  consumer.mark(Mark::BEGIN);
  consumer.meet();
  if (context.warp == 0) {
    ptx::fence_gpu();
    __syncwarp();
    if (context.lane == 0) ptx::store_relaxed_gpu(words + unit, make_word(0, epoch));
    for (int first = 0; first < B::ARRIVALS; first += WARP_LANES) {
      const int i = first + context.lane;
      u32 seen;
      const auto ask = [&] { seen = i < B::ARRIVALS ? word_epoch(ptx::load_relaxed_gpu(words + i)) : epoch; };
      // A later epoch: that SM has seen all arrive, and is in a later step.
      poll(context, Wait::BARRIER, first, ask, [&] { return static_cast<int>(seen - epoch) >= 0; });
    }
    ptx::fence_gpu();
  }
  consumer.meet();
  consumer.mark(Mark::STORED);
}

}  // namespace jitmk::vm
