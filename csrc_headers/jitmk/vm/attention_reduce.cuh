// ATTENTION_REDUCE: merges the partial results of the splits of one query head.
#pragma once
#include "jitmk/tile/attention.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

// Config is rendered from AttentionReduceConfig.
template <class Config>
struct AttentionReduce : Config {
  using Config::HEADS;
  static constexpr int PAIRS = Config::HEAD_DIM / 2;  // of dims: a word
  static constexpr int OUTPUT_STRIDE = isa::copy_stride(HEADS * PAIRS);
  static constexpr int WARP_PAIRS = PAIRS / CONSUMER_WARPS;  // of a head, on one warp
  // SHARES: lanes that share a pair, each with a part of the splits.
  static constexpr int FIT = WARP_LANES / WARP_PAIRS, SHARES = FIT >= 8 ? 8 : FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1;
  static_assert(PAIRS % CONSUMER_WARPS == 0 && WARP_PAIRS <= WARP_LANES, "unsupported head_dim");
};

// What all lanes that share a pair have together, in each of them, with the same bits. Lane s * WARP_PAIRS + i has share s of
// pair i.
template <class R, class Combine>
__device__ __forceinline__ float over_shares(float x, int lane, Combine combine) {
#pragma unroll
  for (int distance = 1; distance < R::SHARES; distance *= 2) {
    const int other = (lane / R::WARP_PAIRS ^ distance) * R::WARP_PAIRS + lane % R::WARP_PAIRS;
    x = combine(x, __shfl_sync(ALL_LANES, x, other));
  }
  return x;
}

// What has been merged of a pair: outputs, weighted, and the sum of their weights, which are relative to the maximum.
struct MergedPair {
  float maximum = tile::LOWEST_SCORE, sum = 0, low = 0, high = 0;
};

// Where a lane finds the partial results of a head.
struct PartialResults {
  const u64 *pair, *lse;  // of split 0
};

// Adds BATCH splits a lane, that many in flight at once, from split `first` of all lanes on.
template <class R, int BATCH, class G>
__device__ __forceinline__ void merge_splits(const Context<G>& context, const PartialResults& partial, int first, int splits, MergedPair& merged) {
  const u32 epoch = context.epoch();
  const int share = context.lane / R::WARP_PAIRS;
  u64 w[BATCH], l[BATCH];
  const auto ask = [&] {
#pragma unroll
    for (int b = 0; b < BATCH; b++) {
      const int split = first + share + b * R::SHARES;
      w[b] = make_word(0, epoch), l[b] = make_word(__float_as_uint(ptx::minus_infinity()), epoch);
      if (split < splits && share < R::SHARES) {
        w[b] = ptx::load_relaxed_gpu(partial.pair + split * R::HEADS * R::PAIRS);
        l[b] = ptx::load_relaxed_gpu(partial.lse + split * R::HEADS * isa::LSE_STRIDE);
      }
    }
  };
  const auto have_come = [&] {
    bool ready = true;
#pragma unroll
    for (int b = 0; b < BATCH; b++) ready &= word_epoch(w[b]) == epoch & word_epoch(l[b]) == epoch;
    return ready;
  };
  poll(context, Wait::PARTIAL_ATTENTION, first, ask, have_come);
  float maximum = merged.maximum;
#pragma unroll
  for (int b = 0; b < BATCH; b++) maximum = fmaxf(maximum, __uint_as_float(word_payload(l[b])));
  maximum = over_shares<R>(maximum, context.lane, [](float x, float y) { return fmaxf(x, y); });
  const float keep = ptx::exp2_approx(merged.maximum - maximum);
  merged = {maximum, merged.sum * keep, merged.low * keep, merged.high * keep};
#pragma unroll
  for (int b = 0; b < BATCH; b++) {
    // 0 of no split, and of one without positions.
    const float weight = ptx::exp2_approx(__uint_as_float(word_payload(l[b])) - maximum);
    merged.sum += weight;
    merged.low += weight * ptx::low_bf16(word_payload(w[b]));
    merged.high += weight * ptx::high_bf16(word_payload(w[b]));
  }
}

template <class R, class G>
__device__ __forceinline__ void consume_attention_reduce(Consumer<G>& consumer, Instruction in) {
  constexpr int AT_ONCE = R::ONLY_FEW ? isa::FEW_SPLITS : isa::REDUCED_SPLITS;  // splits that lanes have in flight together
  const Context<G>& context = consumer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int splits = in[isa::attention_reduce::SPLITS];
  const u64* input = context.params.words + in[isa::attention_reduce::INPUT];
  const u64* lse = context.params.words + in[isa::attention_reduce::LSE];
  u64* output = context.params.words + in[isa::attention_reduce::OUTPUT];
  const int local = context.lane % R::WARP_PAIRS, share = context.lane / R::WARP_PAIRS;
  const int pair = context.warp * R::WARP_PAIRS + local;
  consumer.mark(Mark::BEGIN);
  for (int u = 0; u < count; u++) {
    const int head = begin + u * stride;
    const PartialResults partial{input + head * R::PAIRS + pair, lse + head * isa::LSE_STRIDE};
    MergedPair merged;
    if (!R::ONLY_FEW && splits <= isa::FEW_SPLITS) {
      merge_splits<R, isa::FEW_SPLITS / R::SHARES>(context, partial, 0, splits, merged);
    } else {
      for (int first = 0; first < splits; first += AT_ONCE) merge_splits<R, AT_ONCE / R::SHARES>(context, partial, first, splits, merged);
    }
    consumer.mark(Mark::INPUT);
    const auto add = [](float x, float y) { return x + y; };
    const float sum = over_shares<R>(merged.sum, context.lane, add);
    const float low = over_shares<R>(merged.low, context.lane, add), high = over_shares<R>(merged.high, context.lane, add);
    const float inverse = ptx::reciprocal_approx(sum);
    const u64 word = make_word(ptx::pack_bf16(low * inverse, high * inverse), context.epoch());
    static_assert(R::OUTPUT_COPIES <= R::SHARES, "a copy for each of the lanes that share a pair");
    if (share < R::OUTPUT_COPIES) ptx::store_relaxed_gpu(output + share * R::OUTPUT_STRIDE + head * R::PAIRS + pair, word);
  }
}

}  // namespace jitmk::vm
