// ATTENTION_REDUCE: merges the partial results of the splits of one query head.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

// Config is rendered from AttentionReduceConfig.
template <class Config>
struct AttentionReduce : Config {
  using Config::HEADS;
  static constexpr int D = Config::HEAD_DIM;
  static constexpr int PARTIAL_SIZE = D + isa::PARTIAL_EXTRA;
  static constexpr int OUTPUT_STRIDE = isa::copy_stride(HEADS * D / 2);
  static constexpr int WARP_DIMS = D / CONSUMER_WARPS;  // of a head, on one warp
  static constexpr int SHARES = WARP_LANES / WARP_DIMS;  // lanes that share a dim, each with a part of the splits
  static_assert(D % (2 * CONSUMER_WARPS) == 0 && WARP_DIMS <= WARP_LANES, "unsupported head_dim");
};

template <class R, class G>
__device__ __forceinline__ void consume_attention_reduce(Consumer<G>& consumer, Instruction in) {
  constexpr int BATCH = 4;  // splits in flight per lane
  const Context<G>& context = consumer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int splits = in[isa::attention_reduce::SPLITS];
  const u64* input = context.params.words + in[isa::attention_reduce::INPUT];
  u64* output = context.params.words + in[isa::attention_reduce::OUTPUT];
  const u32 epoch = context.epoch();
  const int local = context.lane % R::WARP_DIMS, share = context.lane / R::WARP_DIMS;
  const int dim = context.warp * R::WARP_DIMS + local;
  consumer.mark(Mark::BEGIN);
  for (int u = 0; u < count; u++) {
    const int head = begin + u * stride;
    float maximum = ptx::minus_infinity(), sum = 0, value = 0;
    for (int batch = 0; batch < splits; batch += BATCH * R::SHARES) {
      const int first = batch + share;
      u64 w[BATCH][3];
      while (true) {
        bool ready = true;
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
          const int split = first + b * R::SHARES;
          const u64* words = input + (split * R::HEADS + head) * R::PARTIAL_SIZE;
          w[b][0] = w[b][1] = w[b][2] = make_word(0, epoch);
          if (split < splits && share < R::SHARES) {
            w[b][0] = ptx::load_relaxed_gpu(words + dim);
            w[b][1] = ptx::load_relaxed_gpu(words + R::D);
            w[b][2] = ptx::load_relaxed_gpu(words + R::D + 1);
          }
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++)
#pragma unroll
          for (int i = 0; i < 3; i++)
            ready &= word_epoch(w[b][i]) == epoch;
        if (__all_sync(ALL_LANES, ready)) break;
        context.begin_wait(Wait::PARTIAL_ATTENTION, first);
        context.leave_if_told();
      }
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        const float split_sum = __uint_as_float(word_payload(w[b][2]));
        if (split_sum == 0) continue;  // no such split, or one without positions
        const float split_maximum = __uint_as_float(word_payload(w[b][1])), next = fmaxf(maximum, split_maximum);
        const float keep = ptx::exp2_approx(maximum - next), weight = ptx::exp2_approx(split_maximum - next);
        maximum = next;
        sum = sum * keep + weight * split_sum;
        value = value * keep + weight * __uint_as_float(word_payload(w[b][0]));
      }
    }
    consumer.mark(Mark::INPUT);
    // Every lane of a dim merges the shares of all lanes of that dim, in the same order.
    float all_maximum = ptx::minus_infinity();
#pragma unroll
    for (int s = 0; s < R::SHARES; s++) all_maximum = fmaxf(all_maximum, __shfl_sync(ALL_LANES, maximum, s * R::WARP_DIMS + local));
    const float weight = sum == 0 ? 0.0f : ptx::exp2_approx(maximum - all_maximum);
    float all_sum = 0, all_value = 0;
#pragma unroll
    for (int s = 0; s < R::SHARES; s++) {
      all_sum += __shfl_sync(ALL_LANES, weight * sum, s * R::WARP_DIMS + local);
      all_value += __shfl_sync(ALL_LANES, weight * value, s * R::WARP_DIMS + local);
    }
    const float result = all_value / all_sum, next = __shfl_down_sync(ALL_LANES, result, 1);
    if (share < R::OUTPUT_COPIES && share < R::SHARES && local % 2 == 0) {
      const u64 word = make_word(ptx::pack_bf16(result, next), epoch);
      for (int copy = share; copy < R::OUTPUT_COPIES; copy += R::SHARES)
        ptx::store_relaxed_gpu(output + copy * R::OUTPUT_STRIDE + (head * R::D + dim) / 2, word);
    }
  }
}

}  // namespace jitmk::vm
