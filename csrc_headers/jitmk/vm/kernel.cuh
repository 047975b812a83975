// The megakernel's frame: sets up a CTA, hands each warp its role, and walks the queue once a step.
#pragma once
#include "jitmk/vm/attention.cuh"
#include "jitmk/vm/attention_reduce.cuh"
#include "jitmk/vm/barrier.cuh"
#include "jitmk/vm/elementwise.cuh"
#include "jitmk/vm/embed.cuh"
#include "jitmk/vm/kv_append.cuh"
#include "jitmk/vm/matvec.cuh"
#include "jitmk/vm/norm.cuh"
#include "jitmk/vm/residual_norm_add.cuh"
#include "jitmk/vm/rope.cuh"
#include "jitmk/vm/sample.cuh"
#include "jitmk/vm/watchdog.cuh"

namespace jitmk::vm {

// The token that a step reads: given by the host, or made by the step before, be it this launch's or the one before
// (which has ended, so that nothing is left to wait for). Negative: there is no such step.
// A newer word than expected can only mean that this SM had no part in the step between, and then any token will do.
template <class G>
__device__ __forceinline__ int await_token(const Context<G>& context) {
  const Params& p = context.params;
  if (context.step == 0 && p.first_token >= 0) return p.first_token;
  const u32 expected = context.epoch() - 1;
  const u64* word = p.token_words + context.sm();
  u64 w = ptx::load_relaxed_gpu(word);
  context.begin_wait(Wait::TOKEN, 0);
  while (!__all_sync(ALL_LANES, context.step == 0 || static_cast<int>(word_epoch(w) - expected) >= 0)) {
    context.leave_if_told();
    w = ptx::load_relaxed_gpu(word);
  }
  const u32 payload = __shfl_sync(ALL_LANES, word_payload(w), 0);
  if (payload & isa::STOP_BIT) return -1;
  return p.forced_tokens != nullptr ? p.forced_tokens[context.step] : static_cast<int>(payload);
}

// Calls `execute` for every instruction of a queue. The next instruction is on its way while this one runs.
template <class G, class Execute>
__device__ __forceinline__ void walk_queue(Context<G>& context, Execute execute) {
  const Params& p = context.params;
  const int* queue = p.instructions + static_cast<i64>(context.sm()) * p.queue_length * isa::INSTRUCTION_WORDS;
  Instruction current = Instruction::of(queue[context.lane]);
  for (int i = 0; current.variant != isa::END_VARIANT; i++) {
    queue += isa::INSTRUCTION_WORDS;
    const int next = queue[context.lane];
    context.enter(i);
    execute(current);
    // NOTE: lanes are together anyway. Without this the compiler knew it or not by how many variants a kernel has.
    __syncwarp();
    current = Instruction::of(next);
  }
}

// Ops gives load, consume and store: the choice among the kernel's variants.
//
// Each branch ends for itself: where warps of two roles met again, the compiler could count on the fewer registers only.
template <class G, class Ops>
__device__ __forceinline__ void run(const Params& params, unsigned char* dynamic) {
  using Shared = typename G::Shared;
  unsigned char* base = ptx::settled(dynamic);
  Shared& shared = Shared::fixed(base);
  const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP_LANES, 0);  // the compiler then knows it to be uniform
  if (threadIdx.x == 0) shared.initialise();
  __syncthreads();
  const Context<G> context{params, shared, warp, static_cast<int>(threadIdx.x) % WARP_LANES};
  const auto finish = [&] {
    __syncwarp();
    if (context.lane == 0) ptx::mbarrier_arrive(&shared.finished);
  };
  if (warp < CONSUMER_WARPS) {
    ptx::take_registers<CONSUMER_REGISTERS>();
    Consumer<G> consumer(context, base);
    for (; consumer.context.step < params.steps; consumer.context.step++) {
      if (await_token(consumer.context) < 0) {
        if (consumer.context.lane == 0) atomicExch(&shared.leave, 1);  // the loader has run ahead into a step that will not be
        break;
      }
      walk_queue(consumer.context, [&](Instruction in) { Ops::consume(consumer, in); });
      if (params.filters) consumer.await_filters();
    }
    return finish();
  }
  ptx::leave_registers<OTHER_REGISTERS>();
  if (warp == LOADER_WARP) {
    Loader<G> loader(context, base);
    for (; loader.context.step < params.steps; loader.context.step++) walk_queue(loader.context, [&](Instruction in) { Ops::load(loader, in); });
    loader.drain();
    finish();
  } else if (warp == STORER_WARP) {
    Storer<G> storer(context);
    for (; storer.context.step < params.steps; storer.context.step++) {
      storer.token = await_token(storer.context);
      if (storer.token < 0) break;
      walk_queue(storer.context, [&](Instruction in) { Ops::store(storer, in); });
      if (params.filters) storer.context.arrive(&shared.filtered);
    }
    finish();
  } else if (warp == WATCHDOG_WARP && context.lane == 0) {
    watch<G>(params, shared);
  }
}

}  // namespace jitmk::vm
