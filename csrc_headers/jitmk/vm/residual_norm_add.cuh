// RESIDUAL_NORM_ADD: residual = residual + scale * norm(x). Every instruction looks at all of x for the norm.
#pragma once
#include "jitmk/vm/moments.cuh"

namespace jitmk::vm {

// Config is rendered from ResidualNormAddConfig.
template <class Config>
struct ResidualNormAdd : Config {
  static constexpr int OUTPUT_STRIDE = isa::bf16_stride(Config::VALUES / 2), RESIDUAL_STRIDE = isa::copy_stride(Config::VALUES);
};

template <class R, class G>
__device__ __forceinline__ void consume_residual_norm_add(Consumer<G>& consumer, Instruction in) {
  using Quads = BlockQuads<R::VALUES>;
  const Context<G>& context = consumer.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const u64* input = p.words + in[isa::residual_norm_add::INPUT];
  const u64* residual_in = p.words + in[isa::residual_norm_add::RESIDUAL_IN];
  u64* output = p.words + in[isa::residual_norm_add::OUTPUT];
  u64* residual_out = p.words + in[isa::residual_norm_add::RESIDUAL_OUT];
  const auto* weight = reinterpret_cast<const float4*>(p.constants + in[isa::residual_norm_add::NORM]);
  const auto* bias = reinterpret_cast<const float4*>(p.constants + in[isa::residual_norm_add::NORM_BIAS]);
  const u32 epoch = context.epoch();
  const Quads quads{context.warp, context.lane};
  consumer.mark(Mark::BEGIN);
  float4 x[Quads::PER_LANE];
  quads.fetch(context, input, 0, Wait::INPUT, x);
  consumer.mark(Mark::INPUT);
  const Normaliser norm = block_normaliser<R::KIND>(consumer, quads, x, R::EPS);
#pragma unroll
  for (int i = 0; i < Quads::PER_LANE; i++) {
    // A warp's quads are all of one unit.
    const int quad = quads.global(i), behind = (i * CONSUMER_THREADS + context.warp * WARP_LANES) / ELEMENTWISE_QUADS - begin;
    if (behind < 0 || behind % stride != 0 || behind / stride >= count) continue;
    const bool inside = quads.inside(i);
    float4 sum = wait_fp32(context, residual_in, quad, inside, Wait::RESIDUAL);
    if (inside) {
      float4 y = multiply(norm(x[i]), weight[quad]);
      if constexpr (R::BIAS) y = add(y, bias[quad]);
      sum = add(multiply(y, R::SCALE), sum);
      publish_bf16<R::OUTPUT_COPIES>(output, R::OUTPUT_STRIDE, quad, sum, epoch);
      publish_fp32<R::RESIDUAL_COPIES>(residual_out, R::RESIDUAL_STRIDE, quad, sum, epoch);
    }
  }
  consumer.mark(Mark::STORED);
}

}  // namespace jitmk::vm
