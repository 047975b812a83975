// ROPE: rotates query and key heads. A warp takes a head.
#pragma once
#include "jitmk/vm/head.cuh"

namespace jitmk::vm {

// R is rendered from RopeConfig.
template <class R, class G>
__device__ __forceinline__ void consume_rope(Consumer<G>& consumer, Instruction in) {
  using Quads = HeadQuads<R::HEAD_DIM, R::ROTARY_DIM>;
  const Context<G>& context = consumer.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const u64* input = p.words + in[isa::rope::INPUT];
  u64* output = p.words + in[isa::rope::OUTPUT];
  const float2* rope = p.rope + static_cast<i64>(context.position()) * R::ROPE_STRIDE + in[isa::rope::ROPE];
  const u32 epoch = context.epoch();
  consumer.mark(Mark::BEGIN);
  for (int u = context.warp; u < count; u += CONSUMER_WARPS) {
    const int first = (begin + u * stride) * isa::bf16_word(R::HEAD_DIM / 2);
    float4 x[Quads::PER_LANE];
    fetch_head<Quads>(context, input + first, Wait::INPUT, first, x);
#pragma unroll
    for (int i = 0; i < Quads::PER_LANE; i++) {
      const int quad = context.lane + i * WARP_LANES;
      if (quad >= Quads::QUADS) continue;
      const HeadQuad y = pack_quad(rotate(x[i], angles<Quads>(rope, quad)));
      ptx::store_relaxed_gpu(output + first + isa::bf16_word(Quads::low(quad)), make_word(y.low, epoch));
      ptx::store_relaxed_gpu(output + first + isa::bf16_word(Quads::high(quad)), make_word(y.high, epoch));
    }
  }
  consumer.mark(Mark::STORED);
}

}  // namespace jitmk::vm
