// The prologue of a matvec: a consumer warp fetches its slice of the input vector by polling the words themselves.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

enum class Prologue { NONE, RMS, LAYER };

// M with its input as it is.
template <class M>
struct WithoutNorm : M {
  static constexpr bool NORM = false;
};

// A warp's slice of the input as bf16 in shared memory, by groups of 4 columns.
//
// Of every 8 columns, 2 and 3 change places with 4 and 5: a lane's 16 bytes are then the A fragment of two products, of
// which the first has its result in rows 0 to 7 and the second in rows 8 to 15. The other rows hold what nobody asked
// for, and no register has to be filled with zeros.
struct Slice {
  u32* words;

  __device__ __forceinline__ uint2 operator[](int i) const { return make_uint2(words[place(i)], words[place(i) + 2]); }
  __device__ __forceinline__ void put(int i, uint2 x) const { words[place(i)] = x.x, words[place(i) + 2] = x.y; }

 private:
  __device__ __forceinline__ static int place(int i) { return i / 2 * 4 + i % 2; }
};

// The slice of M's input that belongs to this warp, multiplied with the norm's weight if M has one. Returns this lane's
// share of the sum of squares (before that weight).
//
// Two words (4 values) are one load, and all loads of a group are in flight before the first is looked at: the wait
// for an activation is the critical path of a step.
template <class M, class G>
__device__ __forceinline__ float fetch_input(Consumer<G>& consumer, const u64* words, const float* norm) {
  constexpr int PAIRS = M::SLICE_COLUMNS / 4;  // of words, in a slice
  constexpr int PER_LANE = (PAIRS + WARP_LANES - 1) / WARP_LANES;
  constexpr int GROUP = PER_LANE <= 8 ? PER_LANE : (PER_LANE + 1) / 2 <= 8 ? (PER_LANE + 1) / 2 : 8;
  const Context<G>& context = consumer.context;
  const int first = context.warp * PAIRS + context.lane;  // pair index in the vector
  const u64* mine = words + isa::spread_word(2 * first, M::INPUT_SPREAD);
  const u32 epoch = context.epoch();
  const Slice slice{reinterpret_cast<u32*>(consumer.slice)};
  float square_sum = 0;
#pragma unroll
  for (int g = 0; g < PER_LANE; g += GROUP) {
    float4 weight[GROUP];
    if constexpr (M::NORM) {
#pragma unroll
      for (int i = 0; i < GROUP; i++) {
        const int pair = first + (g + i) * WARP_LANES;
        weight[i] = pair * 4 < M::COLUMNS ? reinterpret_cast<const float4*>(norm)[pair] : make_float4(0, 0, 0, 0);
      }
    }
    // Past the slice or the vector there is nothing to wait for. What has come is not asked for again: polling takes
    // bandwidth from those who publish.
    ptx::Pair64 w[GROUP] = {};
    bool missing[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      const int local = context.lane + (g + i) * WARP_LANES, pair = context.warp * PAIRS + local;
      missing[i] = local < PAIRS && pair * 4 < M::COLUMNS;
    }
    while (true) {
#pragma unroll
      for (int i = 0; i < GROUP; i++) {
        if (missing[i]) w[i] = ptx::load_relaxed_gpu_pair(mine + isa::spread_word(2 * WARP_LANES, M::INPUT_SPREAD) * (g + i));
      }
      bool ready = true;
#pragma unroll
      for (int i = 0; i < GROUP; i++) {
        missing[i] = missing[i] && (word_epoch(w[i].x) != epoch || word_epoch(w[i].y) != epoch);
        ready &= !missing[i];
      }
      if (__all_sync(ALL_LANES, ready)) break;
      context.begin_wait(Wait::INPUT, first + g * WARP_LANES);
      context.leave_if_told();
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      const int local = context.lane + (g + i) * WARP_LANES;
      uint2 x = make_uint2(word_payload(w[i].x), word_payload(w[i].y));
      if constexpr (M::NORM) {
        const float a = ptx::low_bf16(x.x), b = ptx::high_bf16(x.x), c = ptx::low_bf16(x.y), d = ptx::high_bf16(x.y);
        square_sum += a * a + b * b + c * c + d * d;
        x = make_uint2(ptx::pack_bf16(a * weight[i].x, b * weight[i].y), ptx::pack_bf16(c * weight[i].z, d * weight[i].w));
      }
      if (local < PAIRS) slice.put(local, x);
    }
  }
  __syncwarp();
  return square_sum;
}

}  // namespace jitmk::vm
