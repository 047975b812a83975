// The prologue MERGE of a matvec: attention's output, which every SM merges for itself from the results of a few splits.
//
// That is more to fetch than what ATTENTION_REDUCE would have merged, but no wait for one SM after the other.
#pragma once
#include "jitmk/vm/input.cuh"
#include "jitmk/vm/quads.cuh"

namespace jitmk::vm {

// The slice of M's input that belongs to this warp. All words of all splits are in flight before the first is looked at.
template <class M, class G>
__device__ __forceinline__ void fetch_merged_input(Consumer<G>& consumer, Instruction in, Input<M>& input) {
  constexpr int SPLITS = isa::MERGED_SPLITS, PER_LANE = Input<M>::GROUPS, PAIRS = M::SLICE_COLUMNS / 4;  // of words: quads
  constexpr int HEAD_QUADS = M::COLUMNS / M::HEADS / 4, SPLIT_WORDS = M::COLUMNS / 2, SPLIT_LSE = M::HEADS * isa::LSE_STRIDE;
  static_assert(PER_LANE <= 2, "registers are too few for so many columns");
  const Context<G>& context = consumer.context;
  const int splits = in[isa::matvec::SPLITS], copy = M::INPUT_COPIES > 1 ? context.sm() % M::INPUT_COPIES : 0;
  const int own = lane_quad(ptx::opaque(context.lane)), first = context.warp * PAIRS + own;  // anew: registers are few in attention
  const u64* values = context.params.words + in[isa::matvec::INPUT] + copy * isa::copy_stride(splits * SPLIT_WORDS) + 2 * first;
  const u64* lse = context.params.words + in[isa::matvec::LSE] + copy * isa::bf16_stride(splits * M::HEADS * isa::LSE_WORDS);
  const u32 epoch = context.epoch();
  ptx::Pair64 w[PER_LANE][SPLITS];
  u64 l[PER_LANE][SPLITS];
  bool missing[PER_LANE][SPLITS];
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    const bool inside = own + i * WARP_LANES < PAIRS && (first + i * WARP_LANES) * 4 < M::COLUMNS;
#pragma unroll
    for (int s = 0; s < SPLITS; s++) {
      // A split that there is not weighs nothing. Past the slice or the vector there are zeros.
      w[i][s] = {make_word(0, epoch), make_word(0, epoch)};
      l[i][s] = make_word(s == 0 ? 0 : __float_as_uint(ptx::minus_infinity()), epoch);
      missing[i][s] = inside && s < splits;
    }
  }
  // NOTE: what `poll` does, written out: through it the compiler spilled in the main loops of models with heads of 256.
  while (true) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int head = (first + i * WARP_LANES) / HEAD_QUADS;
#pragma unroll
      for (int s = 0; s < SPLITS; s++) {
        if (!missing[i][s]) continue;
        w[i][s] = ptx::load_relaxed_gpu_pair(values + i * 2 * WARP_LANES + s * SPLIT_WORDS);
        l[i][s] = ptx::load_relaxed_gpu(lse + head * isa::LSE_STRIDE + s * SPLIT_LSE);
      }
    }
    __syncwarp();
    context.while_polling(Wait::PARTIAL_ATTENTION, 0);
    bool ready = true;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
#pragma unroll
      for (int s = 0; s < SPLITS; s++) {
        missing[i][s] = word_epoch(w[i][s].x) != epoch | word_epoch(w[i][s].y) != epoch | word_epoch(l[i][s]) != epoch;
        ready &= !missing[i][s];
      }
    if (__all_sync(ALL_LANES, ready)) break;
  }
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    float logarithm[SPLITS], maximum = ptx::minus_infinity(), sum = 0;  // some split has a position: the maximum is finite
    float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int s = 0; s < SPLITS; s++) logarithm[s] = __uint_as_float(word_payload(l[i][s])), maximum = fmaxf(maximum, logarithm[s]);
#pragma unroll
    for (int s = 0; s < SPLITS; s++) {
      const float weight = ptx::exp2_approx(logarithm[s] - maximum);
      sum += weight;
      x = add(x, multiply(unpack_bf16(make_uint2(word_payload(w[i][s].x), word_payload(w[i][s].y))), weight));
    }
    input.put(i, pack_bf16(multiply(x, ptx::reciprocal_approx(sum))));
  }
}

}  // namespace jitmk::vm
