// The prologues of a matvec: here those that need to know all of its input before any of it can be used, LayerNorm and the
// norm behind the block before (POST). Each consumer warp fetches its slice; they meet once for each such norm.
#pragma once
#include "jitmk/vm/merged_input.cuh"
#include "jitmk/vm/moments.cuh"

namespace jitmk::vm {

// What of M's input belongs to this warp and lane, in quads of values, dealt as Input has them: `local(i)` counts within the
// warp's slice.
template <class M>
struct SliceQuads {
  static constexpr int SLICE = M::SLICE_COLUMNS / 4, PER_LANE = Input<M>::GROUPS;
  int warp, own;

  __device__ __forceinline__ int local(int i) const { return own + i * WARP_LANES; }
  __device__ __forceinline__ int global(int i) const { return warp * SLICE + local(i); }
  // Of most quads the compiler knows it.
  __device__ __forceinline__ bool in_slice(int i) const { return (i + 1) * WARP_LANES <= SLICE || local(i) < SLICE; }
  __device__ __forceinline__ bool inside(int i) const {
    return in_slice(i) && (M::COLUMNS == CONSUMER_WARPS * M::SLICE_COLUMNS || global(i) * 4 < M::COLUMNS);
  }
  // Columns of the matrix in the slice.
  __device__ __forceinline__ float count() const { return static_cast<float>(max(0, min(M::SLICE_COLUMNS, M::COLUMNS - warp * M::SLICE_COLUMNS))); }
};

// A vector at this lane's quads: `fetch(i)`. With HELD it is fetched by the constructor, that is ahead of the words that the
// step waits for, and kept in registers.
template <class M, bool HELD, class Fetch>
class SliceVector {
 public:
  __device__ __forceinline__ explicit SliceVector(Fetch fetch) : fetch_(fetch) {
    if constexpr (HELD) {
#pragma unroll
      for (int i = 0; i < SliceQuads<M>::PER_LANE; i++) held_[i] = fetch(i);
    }
  }

  __device__ __forceinline__ float4 operator[](int i) const { return HELD ? held_[HELD ? i : 0] : fetch_(i); }

 private:
  Fetch fetch_;
  float4 held_[HELD ? SliceQuads<M>::PER_LANE : 1];
};

template <class M, bool HELD, class Fetch>
__device__ __forceinline__ SliceVector<M, HELD, Fetch> slice_vector(Fetch fetch) {
  return SliceVector<M, HELD, Fetch>(fetch);
}

// A constant vector at this lane's quads; zeros where there are none.
template <class M, bool PRESENT, bool HELD>
__device__ __forceinline__ auto slice_constants(SliceQuads<M> quads, const float* vector) {
  return slice_vector<M, (PRESENT && HELD)>([=](int i) {
    const float4* from = reinterpret_cast<const float4*>(vector) + quads.global(i);
    return PRESENT && quads.inside(i) ? *from : make_float4(0, 0, 0, 0);
  });
}

// This warp's slice of the fp32 residual, to shared memory.
template <class M, class G>
__device__ __forceinline__ void fetch_residual(const Consumer<G>& consumer, SliceQuads<M> quads, const u64* words, float4* residual) {
  constexpr int PER_LANE = SliceQuads<M>::PER_LANE, GROUP = PER_LANE <= 4 ? PER_LANE : 4;
#pragma unroll
  for (int g = 0; g < PER_LANE; g += GROUP) {
    uint2 x[2 * GROUP];
    const auto address = [=](int i) { return quads.inside(g + i / 2) ? words + 4 * quads.global(g + i / 2) + i % 2 * 2 : nullptr; };
    wait_pairs(consumer.context, address, Wait::RESIDUAL, 4 * quads.global(g), x);
#pragma unroll
    for (int i = 0; i < GROUP; i++)
      if (quads.in_slice(g + i)) residual[quads.local(g + i)] = unpack_fp32(x[2 * i], x[2 * i + 1]);
  }
}

// Where the fp32 sum behind a post-norm lies that belongs to this warp, and before it the residual: behind the input, if that
// is there too.
template <class M, class G>
__device__ __forceinline__ float4* sum_of_slice(const Consumer<G>& consumer) {
  return reinterpret_cast<float4*>(consumer.slice + (M::INPUT_IN_SHARED ? Input<M>::GROUPS * WARP_LANES * sizeof(uint2) : 0));
}

// Publishes what lies in this warp's slice of the parts of the sum that belong to the instruction's units: SUM_VALUES to
// each, in the order of the units.
template <class M, class G>
__device__ __forceinline__ void publish_sum(const Consumer<G>& consumer, Instruction in) {
  const auto* sum = reinterpret_cast<const float*>(sum_of_slice<M>(consumer));
  constexpr int VALUES = M::SUM_VALUES, STRIDE = isa::copy_stride(M::COLUMNS);
  const Context<G>& context = consumer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  u64* output = context.params.words + in[isa::matvec::RESIDUAL_OUT];
  const int first = context.warp * M::SLICE_COLUMNS, last = min(first + M::SLICE_COLUMNS, M::COLUMNS);
  // The first of the units whose part reaches into the slice.
  const int before = max(0, first / VALUES - begin + stride - 1) / stride;
  for (int i = before + context.lane; i < count; i += WARP_LANES) {
    const int part = (begin + i * stride) * VALUES;
#pragma unroll
    for (int v = 0; v < VALUES; v++) {
      const int column = part + v;
      if (column < first || column >= last) continue;
      const u64 word = make_word(__float_as_uint(sum[column - first]), context.epoch());
#pragma unroll
      for (int copy = 0; copy < M::RESIDUAL_COPIES; copy++) ptx::store_relaxed_gpu(output + copy * STRIDE + column, word);
    }
  }
  __syncwarp();
}

// The slice of M's input that belongs to this warp, after M's norms. Returns this lane's share of the sum of squares that
// the prologue RMS applies to the dot products.
template <class M, class G>
__device__ __forceinline__ float fetch_normed_input(Consumer<G>& consumer, Instruction in, const u64* words, Input<M>& input) {
  constexpr bool POST = M::POST != NormKind::NONE, LAYER = M::PROLOGUE == Prologue::LAYER, RMS = M::PROLOGUE == Prologue::RMS;
  using Quads = SliceQuads<M>;
  constexpr int PER_LANE = Quads::PER_LANE, VECTORS = 2 * POST + M::POST_BIAS + (LAYER || RMS) + M::NORM_BIAS;
  constexpr bool HELD = PER_LANE * VECTORS <= 16;  // 64 registers
  consumer.context.lane = ptx::opaque(consumer.context.lane);
  const Context<G>& context = consumer.context;
  const float* constants = context.params.constants;
  const Quads quads{context.warp, lane_quad(context.lane)};
  const auto inside = [quads](int i) { return quads.inside(i); };
  float4* left = sum_of_slice<M>(consumer);
  const auto weight = slice_constants<M, (LAYER || RMS), HELD>(quads, constants + in[isa::matvec::NORM]);
  const auto bias = slice_constants<M, M::NORM_BIAS, HELD>(quads, constants + in[isa::matvec::NORM_BIAS]);
  const auto post_weight = slice_constants<M, POST, HELD>(quads, constants + in[isa::matvec::POST_NORM]);
  const auto post_bias = slice_constants<M, M::POST_BIAS, HELD>(quads, constants + in[isa::matvec::POST_NORM_BIAS]);
  if constexpr (POST) {
    const int copy = M::RESIDUAL_COPIES > 1 ? context.sm() % M::RESIDUAL_COPIES : 0;
    fetch_residual(consumer, quads, context.params.words + in[isa::matvec::RESIDUAL_IN] + copy * isa::copy_stride(M::COLUMNS), left);
  }
  const auto residual =
      slice_vector<M, (POST && HELD)>([=](int i) { return POST && quads.in_slice(i) ? left[quads.local(i)] : make_float4(0, 0, 0, 0); });
  fetch_input<WithoutNorm<M>>(consumer, words, nullptr, input);
  const auto raw = [&input](int i) { return unpack_bf16(input[i]); };
  float square_sum = 0;
  if constexpr (POST) {
    // What is to be multiplied with the norm's scale does not wait for it.
    const auto weighted = slice_vector<M, HELD>([&](int i) { return multiply(raw(i), post_weight[i]); });
    const Normaliser norm = exchange_moments<M::POST>(consumer, warp_moments<M::POST, PER_LANE>(quads.count(), raw, inside), M::COLUMNS, M::NORM_EPS);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      float4 x;
      if constexpr (M::POST == NormKind::RMS && !M::POST_BIAS)
        x = add(multiply(weighted[i], norm.scale * M::POST_SCALE), residual[i]);
      else
        x = add(multiply(add(multiply(norm(raw(i)), post_weight[i]), post_bias[i]), M::POST_SCALE), residual[i]);
      if ((LAYER || M::POST_SUM) && quads.in_slice(i)) left[quads.local(i)] = x;
      if constexpr (!LAYER) {
        if constexpr (RMS) square_sum += sum_of_squares(x);
        input.put(i, pack_bf16(RMS ? multiply(x, weight[i]) : x));
      }
    }
  }
  if constexpr (LAYER) {
    const auto value = [&](int i) {
      if constexpr (!POST) return raw(i);
      return quads.in_slice(i) ? left[quads.local(i)] : make_float4(0, 0, 0, 0);
    };
    const Normaliser norm = exchange_moments<NormKind::LAYER>(consumer, warp_moments<NormKind::LAYER, PER_LANE>(quads.count(), value, inside),
                                                              M::COLUMNS, M::NORM_EPS, !POST);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) input.put(i, pack_bf16(add(multiply(norm(value(i)), weight[i]), bias[i])));
  }
  __syncwarp();  // lanes publish what others have left of the sum
  return square_sum;
}

// The slice of M's input that belongs to this warp, after M's prologue. norm: the weight of the prologue RMS. Returns this
// lane's share of the sum of squares that the prologue RMS applies to the dot products.
template <class M, class G>
__device__ __forceinline__ float fetch_prologue(Consumer<G>& consumer, Instruction in, const u64* words, const float* norm, Input<M>& input) {
  float square_sum;
  if constexpr (M::PROLOGUE == Prologue::MERGE)
    square_sum = 0, fetch_merged_input<M>(consumer, in, input);
  else if constexpr (M::NEEDS_ALL)
    square_sum = fetch_normed_input<M>(consumer, in, words, input);
  else
    square_sum = fetch_input<M>(consumer, words, norm, input);
  consumer.mark(Mark::INPUT);
  if (consumer.context.warp == 0) consumer.mark(Mark::FIRST_INPUT);
  return square_sum;
}

}  // namespace jitmk::vm
