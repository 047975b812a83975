// NORM: groups of a vector, each normed by itself. All consumer warps work on one group.
#pragma once
#include "jitmk/vm/moments.cuh"

namespace jitmk::vm {

// Config is rendered from NormConfig.
template <class Config>
struct NormOp : Config {
  using Config::GROUP, Config::GROUPS;
  static constexpr int OUTPUT_STRIDE = isa::bf16_stride(GROUPS * GROUP / 2);
  static_assert(GROUP % 4 == 0, "groups are taken four values at a time");
};

template <class N, class G>
__device__ __forceinline__ void consume_norm(Consumer<G>& consumer, Instruction in) {
  using Quads = BlockQuads<N::GROUP>;
  const Context<G>& context = consumer.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE], first = in[isa::norm::FIRST];
  const u64* input = p.words + in[isa::norm::INPUT] + isa::bf16_word(first / 2);
  u64* output = p.words + in[isa::norm::OUTPUT] + isa::bf16_word(first / 2);
  const auto* weight = reinterpret_cast<const float4*>(p.constants + in[isa::norm::NORM]);
  const auto* bias = reinterpret_cast<const float4*>(p.constants + in[isa::norm::NORM_BIAS]);
  const Quads quads{context.warp, context.lane};
  consumer.mark(Mark::BEGIN);
  for (int u = 0; u < count; u++) {
    const int group = begin + u * stride, before = group * Quads::QUADS, weights = N::SHARED ? 0 : before;
    float4 x[Quads::PER_LANE];
    quads.fetch(context, input, before, Wait::INPUT, x);
    consumer.mark(Mark::INPUT);
    const Normaliser norm = block_normaliser<N::KIND>(consumer, quads, x, N::EPS);
#pragma unroll
    for (int i = 0; i < Quads::PER_LANE; i++) {
      if (!quads.inside(i)) continue;
      float4 y = multiply(norm(x[i]), weight[weights + quads.global(i)]);
      if constexpr (N::BIAS) y = add(y, bias[weights + quads.global(i)]);
      publish_bf16<N::OUTPUT_COPIES>(output, N::OUTPUT_STRIDE, before + quads.global(i), y, context.epoch());
    }
  }
  consumer.mark(Mark::STORED);
}

}  // namespace jitmk::vm
