// ATTENTION_REDUCE: merges the partial results of the splits of one query head.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

// Config is rendered from AttentionReduceConfig.
template <class Config>
struct AttentionReduce : Config {
  using Config::HEADS;
  static constexpr int PAIRS = Config::HEAD_DIM / 2;  // of dims: a word
  static constexpr int OUTPUT_STRIDE = isa::copy_stride(HEADS * PAIRS);
  static constexpr int WARP_PAIRS = PAIRS / CONSUMER_WARPS;  // of a head, on one warp
  static constexpr int SHARES = WARP_LANES / WARP_PAIRS;  // lanes that share a pair, each with a part of the splits
  static_assert(PAIRS % CONSUMER_WARPS == 0 && WARP_PAIRS <= WARP_LANES, "unsupported head_dim");
};

template <class R, class G>
__device__ __forceinline__ void consume_attention_reduce(Consumer<G>& consumer, Instruction in) {
  constexpr int BATCH = 4;  // splits in flight per lane
  const Context<G>& context = consumer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int splits = in[isa::attention_reduce::SPLITS];
  const u64* input = context.params.words + in[isa::attention_reduce::INPUT];
  const u64* lse = context.params.words + in[isa::attention_reduce::LSE];
  u64* output = context.params.words + in[isa::attention_reduce::OUTPUT];
  const u32 epoch = context.epoch();
  const int local = context.lane % R::WARP_PAIRS, share = context.lane / R::WARP_PAIRS;
  const int pair = context.warp * R::WARP_PAIRS + local;
  consumer.mark(Mark::BEGIN);
  for (int u = 0; u < count; u++) {
    const int head = begin + u * stride;
    float maximum = ptx::minus_infinity(), sum = 0, low = 0, high = 0;
    for (int batch = 0; batch < splits; batch += BATCH * R::SHARES) {
      const int first = batch + share;
      u64 w[BATCH], l[BATCH];
      while (true) {
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
          const int split = first + b * R::SHARES, row = split * R::HEADS + head;
          w[b] = make_word(0, epoch), l[b] = make_word(__float_as_uint(ptx::minus_infinity()), epoch);
          if (split < splits && share < R::SHARES) {
            w[b] = ptx::load_relaxed_gpu(input + row * R::PAIRS + pair);
            l[b] = ptx::load_relaxed_gpu(lse + row * isa::LSE_STRIDE);
          }
        }
        context.while_polling(Wait::PARTIAL_ATTENTION, first);
        bool ready = true;
#pragma unroll
        for (int b = 0; b < BATCH; b++) ready &= word_epoch(w[b]) == epoch & word_epoch(l[b]) == epoch;
        if (__all_sync(ALL_LANES, ready)) break;
      }
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        const float of_split = __uint_as_float(word_payload(l[b])), next = fmaxf(maximum, of_split);
        if (of_split == ptx::minus_infinity()) continue;  // no such split, or one without positions
        const float keep = ptx::exp2_approx(maximum - next), weight = ptx::exp2_approx(of_split - next);
        maximum = next;
        sum = sum * keep + weight;
        low = low * keep + weight * ptx::low_bf16(word_payload(w[b]));
        high = high * keep + weight * ptx::high_bf16(word_payload(w[b]));
      }
    }
    consumer.mark(Mark::INPUT);
    // Every lane of a pair merges the shares of all lanes of that pair, in the same order.
    float all_maximum = ptx::minus_infinity();
#pragma unroll
    for (int s = 0; s < R::SHARES; s++) all_maximum = fmaxf(all_maximum, __shfl_sync(ALL_LANES, maximum, s * R::WARP_PAIRS + local));
    const float weight = sum == 0 ? 0.0f : ptx::exp2_approx(maximum - all_maximum);
    float all_sum = 0, all_low = 0, all_high = 0;
#pragma unroll
    for (int s = 0; s < R::SHARES; s++) {
      const int from = s * R::WARP_PAIRS + local;
      all_sum += __shfl_sync(ALL_LANES, weight * sum, from);
      all_low += __shfl_sync(ALL_LANES, weight * low, from);
      all_high += __shfl_sync(ALL_LANES, weight * high, from);
    }
    const float inverse = ptx::reciprocal_approx(all_sum);
    const u64 word = make_word(ptx::pack_bf16(all_low * inverse, all_high * inverse), epoch);
    if (share < R::SHARES) {
      for (int copy = share; copy < R::OUTPUT_COPIES; copy += R::SHARES) ptx::store_relaxed_gpu(output + copy * R::OUTPUT_STRIDE + head * R::PAIRS + pair, word);
    }
  }
}

}  // namespace jitmk::vm
