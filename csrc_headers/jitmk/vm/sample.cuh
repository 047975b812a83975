// SAMPLE: the best of the LM head's candidates is the next token; every SM and the host are told.
#pragma once
#include "jitmk/vm/candidate.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

template <class G>
__device__ __forceinline__ void consume_sample(Consumer<G>& consumer, Instruction in) {
  constexpr int BATCH = 4;  // candidates in flight per lane
  const Context<G>& context = consumer.context;
  const Params& p = context.params;
  const u64* input = p.words + in[isa::sample::INPUT];
  const int candidates = in[isa::sample::CANDIDATES];
  if (context.warp != 0) return;
  const u32 epoch = context.epoch();
  const int lane = context.lane;
  Candidate best;
  for (int batch = 0; batch < candidates; batch += BATCH * WARP_LANES) {
    const int first = batch + lane;
    ptx::Pair64 w[BATCH];
    const auto ask = [&] {
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        const int c = first + b * WARP_LANES;
        w[b] = {make_word(0xff800000u, epoch), make_word(isa::NO_TOKEN, epoch)};  // -inf: no candidate
        if (c < candidates) w[b] = ptx::load_relaxed_gpu_pair(input + 2 * c);
      }
    };
    const auto have_come = [&] {
      bool ready = true;
#pragma unroll
      for (int b = 0; b < BATCH; b++) ready &= word_epoch(w[b].x) == epoch & word_epoch(w[b].y) == epoch;
      return ready;
    };
    poll(context, Wait::CANDIDATE, first, ask, have_come);
#pragma unroll
    for (int b = 0; b < BATCH; b++) best.offer(__uint_as_float(word_payload(w[b].x)), static_cast<int>(word_payload(w[b].y)));
  }
  __syncwarp();
  best.reduce<WARP_LANES>();
  // No logit was a number above -inf: the host is told by a token that cannot be.
  u32 payload = best.token;
  bool stop = best.token == isa::NO_TOKEN;
#pragma unroll 1
  for (int i = 0; i < p.stop_tokens; i++) stop |= best.token == p.stop_token[i];
  if (stop && p.forced_tokens == nullptr) payload |= isa::STOP_BIT;
  for (int sm = lane; sm < p.sms; sm += WARP_LANES) ptx::store_relaxed_gpu(p.token_words + sm, make_word(payload, epoch));
  if (lane == 0) ptx::store_relaxed_system(p.host_tokens + epoch % isa::HOST_TOKENS, make_word(payload, epoch));
}

}  // namespace jitmk::vm
