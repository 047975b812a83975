// The opcodes that go value by value: ACTIVATE, GATED_ACTIVATE, ADD, RESIDUAL_ADD, COPY, ZERO. A lane takes four values.
#pragma once
#include "jitmk/vm/activation.cuh"
#include "jitmk/vm/quads.cuh"

namespace jitmk::vm {

// Config is rendered from the opcode's config.
template <class Config>
struct Elementwise : Config {
  static constexpr int OUTPUT_STRIDE = isa::bf16_stride(Config::VALUES / 2), RESIDUAL_STRIDE = isa::copy_stride(Config::VALUES);
  static_assert(Config::VALUES % 4 == 0, "vectors are taken four values at a time");
};

template <Activation F>
__device__ __forceinline__ float4 activate(float4 x) {
  return make_float4(activate<F>(x.x), activate<F>(x.y), activate<F>(x.z), activate<F>(x.w));
}

template <class E, class G>
__device__ __forceinline__ void publish_output(const Context<G>& context, u64* output, int quad, float4 x, bool inside) {
  if (inside) publish_bf16<E::OUTPUT_COPIES>(output, E::OUTPUT_STRIDE, quad, x, context.epoch());
}

template <class E, class G>
__device__ __forceinline__ void consume_activate(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const u64* input = context.params.words + in[isa::activate::INPUT];
  u64* output = context.params.words + in[isa::activate::OUTPUT];
  for_each_quad(consumer, in, E::VALUES, [&](int quad, bool inside) {
    const float4 x = wait_bf16(context, input, quad, inside, Wait::INPUT);
    publish_output<E>(context, output, quad, activate<E::ACTIVATION>(x), inside);
  });
}

// The input is gate, up, gate, up, ...: two of its quads make one of the output.
template <class E, class G>
__device__ __forceinline__ void consume_gated_activate(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const u64* input = context.params.words + in[isa::gated_activate::INPUT];
  u64* output = context.params.words + in[isa::gated_activate::OUTPUT];
  for_each_quad(consumer, in, E::VALUES, [&](int quad, bool inside) {
    uint2 payload[2];
    const auto address = [=](int i) { return inside ? input + isa::bf16_word(2 * (2 * quad + i)) : nullptr; };
    wait_pairs(context, address, Wait::INPUT, 4 * quad, payload);
    const float4 a = unpack_bf16(payload[0]), b = unpack_bf16(payload[1]);
    const float4 gate = make_float4(a.x, a.z, b.x, b.z), up = make_float4(a.y, a.w, b.y, b.w);
    publish_output<E>(context, output, quad, multiply(activate<E::ACTIVATION>(gate), up), inside);
  });
}

template <class E, class G>
__device__ __forceinline__ void consume_add(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const u64* input = context.params.words + in[isa::add::INPUT];
  const u64* other = context.params.words + in[isa::add::OTHER];
  u64* output = context.params.words + in[isa::add::OUTPUT];
  for_each_quad(consumer, in, E::VALUES, [&](int quad, bool inside) {
    const float4 x = wait_bf16(context, input, quad, inside, Wait::INPUT);
    publish_output<E>(context, output, quad, add(x, wait_bf16(context, other, quad, inside, Wait::INPUT)), inside);
  });
}

template <class E, class G>
__device__ __forceinline__ void consume_residual_add(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const u64* input = context.params.words + in[isa::residual_add::INPUT];
  const u64* residual_in = context.params.words + in[isa::residual_add::RESIDUAL_IN];
  u64* output = context.params.words + in[isa::residual_add::OUTPUT];
  u64* residual_out = context.params.words + in[isa::residual_add::RESIDUAL_OUT];
  for_each_quad(consumer, in, E::VALUES, [&](int quad, bool inside) {
    const float4 x = wait_bf16(context, input, quad, inside, Wait::INPUT);
    const float4 sum = add(multiply(x, E::SCALE), wait_fp32(context, residual_in, quad, inside, Wait::RESIDUAL));
    publish_output<E>(context, output, quad, sum, inside);
    if (inside) publish_fp32<E::RESIDUAL_COPIES>(residual_out, E::RESIDUAL_STRIDE, quad, sum, context.epoch());
  });
}

// From `first` on, at the same place in input and output.
template <class E, class G>
__device__ __forceinline__ void consume_copy(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const int first = in[isa::copy::FIRST];
  const u64* input = context.params.words + in[isa::copy::INPUT] + isa::bf16_word(first / 2);
  u64* output = context.params.words + in[isa::copy::OUTPUT] + isa::bf16_word(first / 2);
  for_each_quad(consumer, in, E::VALUES, [&](int quad, bool inside) {
    publish_output<E>(context, output, quad, wait_bf16(context, input, quad, inside, Wait::INPUT), inside);
  });
}

template <class E, class G>
__device__ __forceinline__ void consume_zero(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  u64* output = context.params.words + in[isa::zero::OUTPUT];
  for_each_quad(consumer, in, E::VALUES, [&](int quad, bool inside) { publish_output<E>(context, output, quad, make_float4(0, 0, 0, 0), inside); });
}

}  // namespace jitmk::vm
