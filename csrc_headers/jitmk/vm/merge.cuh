// The prologue of a matvec that reads attention over a few parts of the context: a consumer warp merges its slice of them.
#pragma once
#include "jitmk/vm/input.cuh"
#include "jitmk/vm/quads.cuh"

namespace jitmk::vm {

// What up to SPLITS splits count for in the heads that some neighbouring columns belong to: the lanes of a warp share out
// heads and splits, split fastest. COLUMNS: how many columns, HEAD_DIM: of a head.
template <int SPLITS, int COLUMNS, int HEAD_DIM>
struct SplitWeights {
  static constexpr int MAX_HEADS = (COLUMNS + HEAD_DIM - 2) / HEAD_DIM + 1;  // that so many columns can touch
  static constexpr int WORDS = (MAX_HEADS * SPLITS + WARP_LANES - 1) / WARP_LANES;  // on a lane
  static_assert((SPLITS & (SPLITS - 1)) == 0, "lanes of a head are found by changing bits");
  int lane, first_head;
  u64 lse[WORDS];  // of lane's heads and splits; -inf where there is no such split

  __device__ __forceinline__ SplitWeights(int of_lane, int head) : lane(of_lane), first_head(head) {
#pragma unroll
    for (int i = 0; i < WORDS; i++) lse[i] = __float_as_uint(split() == 0 ? 0.0f : ptx::minus_infinity());
  }

  __device__ __forceinline__ int split() const { return lane % SPLITS; }
  __device__ __forceinline__ int head(int i) const { return first_head + (i * WARP_LANES + lane) / SPLITS; }

  // From logarithms to parts of 1, in `weights`.
  __device__ __forceinline__ void normalise(float (&weights)[WORDS]) const {
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
      const float logarithm = __uint_as_float(word_payload(lse[i]));
      float maximum = logarithm;
#pragma unroll
      for (int bit = 1; bit < SPLITS; bit *= 2) maximum = fmaxf(maximum, __shfl_xor_sync(ALL_LANES, maximum, bit));
      const float weight = ptx::exp2_approx(logarithm - maximum);
      float sum = weight;
#pragma unroll
      for (int bit = 1; bit < SPLITS; bit *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, bit);
      weights[i] = weight / sum;
    }
  }

  // That of a head and a split, which each lane may ask for another of.
  __device__ __forceinline__ float of(const float (&weights)[WORDS], int head, int split) const {
    const int place = (head - first_head) * SPLITS + split;
    float weight = __shfl_sync(ALL_LANES, weights[0], place % WARP_LANES);
#pragma unroll
    for (int i = 1; i < WORDS; i++) {
      const float other = __shfl_sync(ALL_LANES, weights[i], place % WARP_LANES);
      if (place / WARP_LANES == i) weight = other;
    }
    return weight;
  }
};

template <class M>
constexpr int SLICE_QUADS_PER_LANE = (M::SLICE_COLUMNS / 4 + WARP_LANES - 1) / WARP_LANES;

constexpr int SPLIT_LOADS = 8;  // of quads, in flight on a lane: as many as there are registers for beside the early weights

// As fetch_input, of a vector in up to SPLITS parts: `words` of one split after the other, and in `lse` a word for each head
// of each split.
template <class M, int SPLITS, class G>
__device__ __forceinline__ void fetch_splits(Consumer<G>& consumer, const u64* words, const u64* lse, int splits) {
  constexpr int HEADS = M::COLUMNS / M::HEAD_DIM, HEAD_QUADS = M::HEAD_DIM / 4;
  constexpr int QUADS = M::SLICE_COLUMNS / 4, PER_LANE = SLICE_QUADS_PER_LANE<M>;
  constexpr int GROUP = PER_LANE < SPLIT_LOADS / SPLITS ? PER_LANE : SPLIT_LOADS / SPLITS;
  using Weights = SplitWeights<SPLITS, 4 * GROUP * WARP_LANES, M::HEAD_DIM>;
  static_assert(M::HEAD_DIM % 4 == 0, "a quad lies in one head");
  const Context<G>& context = consumer.context;
  const u32 epoch = context.epoch();
  const int lane = context.lane;
  const Slice slice{reinterpret_cast<u32*>(consumer.slice)};
#pragma unroll 1
  for (int g = 0; g < PER_LANE; g += GROUP) {
    const int first = context.warp * QUADS + g * WARP_LANES;  // quad of the vector
    const int end = min(M::COLUMNS / 4, first + min(GROUP * WARP_LANES, QUADS - g * WARP_LANES));
    // A bit for each split of each quad that is still to come, then one for each logarithm. Past the slice or the vector
    // there is nothing to wait for.
    constexpr int FIRST_WEIGHT = GROUP * SPLITS;
    u32 missing = 0;
    ptx::Pair64 w[GROUP][SPLITS] = {};
    Weights weights(lane, first / HEAD_QUADS);
#pragma unroll
    for (int i = 0; i < GROUP; i++)
      if (first + i * WARP_LANES + lane < end) missing |= ((1u << splits) - 1) << i * SPLITS;
#pragma unroll
    for (int i = 0; i < Weights::WORDS; i++)
      if (weights.head(i) * HEAD_QUADS < end && weights.split() < splits) missing |= 1u << (FIRST_WEIGHT + i);
    while (true) {
#pragma unroll
      for (int i = 0; i < GROUP; i++) {
#pragma unroll
        for (int s = 0; s < SPLITS; s++)
          if (missing >> (i * SPLITS + s) & 1)
            w[i][s] = ptx::load_relaxed_gpu_pair(words + 2 * (first + i * WARP_LANES + lane) + s * (M::COLUMNS / 2));
      }
#pragma unroll
      for (int i = 0; i < Weights::WORDS; i++)
        if (missing >> (FIRST_WEIGHT + i) & 1) weights.lse[i] = ptx::load_relaxed_gpu(lse + weights.split() * HEADS + weights.head(i));
#pragma unroll
      for (int i = 0; i < GROUP; i++) {
#pragma unroll
        for (int s = 0; s < SPLITS; s++)
          if (word_epoch(w[i][s].x) == epoch && word_epoch(w[i][s].y) == epoch) missing &= ~(1u << (i * SPLITS + s));
      }
#pragma unroll
      for (int i = 0; i < Weights::WORDS; i++)
        if (word_epoch(weights.lse[i]) == epoch) missing &= ~(1u << (FIRST_WEIGHT + i));
      if (__all_sync(ALL_LANES, missing == 0)) break;
      context.begin_wait(Wait::PARTIAL_ATTENTION, first);
      context.leave_if_told();
    }
    float parts[Weights::WORDS];
    weights.normalise(parts);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      const int local = (g + i) * WARP_LANES + lane;
      const int head = max(first, min(first + i * WARP_LANES + lane, end - 1)) / HEAD_QUADS;
      float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int s = 0; s < SPLITS; s++)
        x = add(x, multiply(unpack_bf16(make_uint2(word_payload(w[i][s].x), word_payload(w[i][s].y))), weights.of(parts, head, s)));
      if (local < QUADS) slice.put(local, pack_bf16(x));
    }
  }
  __syncwarp();
}

// Of a vector in up to MAX_MERGED_SPLITS parts. Two parts of a wide one are fetched by code of their own, with more of its
// columns in flight.
template <class M, class G>
__device__ __forceinline__ void fetch_merged_input(Consumer<G>& consumer, const u64* words, const u64* lse, int splits) {
  constexpr int MOST = isa::MAX_MERGED_SPLITS;
  consumer.context.lane = ptx::opaque(consumer.context.lane);
  if constexpr (SLICE_QUADS_PER_LANE<M> * MOST > SPLIT_LOADS) {
    if (splits == 2) {
      fetch_splits<M, 2>(consumer, words, lse, splits);
      return;
    }
  }
  fetch_splits<M, MOST>(consumer, words, lse, splits);
}

}  // namespace jitmk::vm
