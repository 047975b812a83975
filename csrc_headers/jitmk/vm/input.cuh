// The prologue of a matvec: a consumer warp fetches its slice of the input vector by polling the words themselves.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

enum class Prologue { NONE, RMS, LAYER, MERGE };

// M with its input as it is.
template <class M>
struct WithoutNorm : M {
  static constexpr bool NORM = false;
};

constexpr int CHAINS = isa::CHAINS;

// Which quad of columns is this lane's, of the 32 of each group of CHAINS blocks. Lanes 8 b to 8 b + 7 have block b: the
// first four of them columns 0 to 3 of what a lane of the weights holds of a row, the others columns 4 to 7.
__device__ __forceinline__ int lane_quad(int lane) { return lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2; }

// A warp's slice of the input, as the B operand: a quad of bf16 a lane for each group of CHAINS blocks. In registers, or in
// shared memory (MatvecConfig.input_in_shared), of which a lane reads what it has written.
template <class M>
class Input {
 public:
  static constexpr int GROUPS = (M::BLOCKS + CHAINS - 1) / CHAINS;

  __device__ __forceinline__ Input(unsigned char* slice, int lane) : shared_(reinterpret_cast<uint2*>(slice) + lane) {}

  __device__ __forceinline__ uint2 operator[](int group) const {
    return M::INPUT_IN_SHARED ? shared_[group * WARP_LANES] : held_[M::INPUT_IN_SHARED ? 0 : group];
  }
  __device__ __forceinline__ void put(int group, uint2 x) {
    if constexpr (M::INPUT_IN_SHARED)
      shared_[group * WARP_LANES] = x;
    else
      held_[group] = x;
  }

 private:
  uint2* shared_;
  uint2 held_[M::INPUT_IN_SHARED ? 1 : GROUPS];
};

// The slice of M's input that belongs to this warp, multiplied with the norm's weight if M has one. Returns this lane's
// share of the sum of squares (before that weight).
//
// Two words (4 values) are one load, and many loads are in flight together: the wait for an activation is the critical path
// of a step.
template <class M, class G, class In>
__device__ __forceinline__ float fetch_input(Consumer<G>& consumer, const u64* words, const float* norm, In& input) {
  constexpr int PAIRS = M::SLICE_COLUMNS / 4;  // of words, in a slice
  constexpr int PER_LANE = In::GROUPS;
  constexpr int GROUP = PER_LANE <= 8 ? PER_LANE : (PER_LANE + 1) / 2 <= 8 ? (PER_LANE + 1) / 2 : 8;
  const Context<G>& context = consumer.context;
  // Where weights fill the registers, what follows from the lane's number is not to be kept from one instruction to the next.
  const int own = lane_quad(M::INPUT_IN_SHARED ? ptx::opaque(context.lane) : context.lane);  // pair index in the slice
  const int first = context.warp * PAIRS + own;                                              // and in the vector
  const u64* mine = words + isa::spread_word(2 * first, M::INPUT_SPREAD);
  const u32 epoch = context.epoch();
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
    ptx::Pair64 w[GROUP];
    bool missing[GROUP];
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      const int local = own + (g + i) * WARP_LANES, pair = context.warp * PAIRS + local;
      w[i] = {make_word(0, epoch), make_word(0, epoch)};
      missing[i] = g + i < PER_LANE && local < PAIRS && pair * 4 < M::COLUMNS;
    }
    const auto ask = [&] {
#pragma unroll
      for (int i = 0; i < GROUP; i++)
        if (missing[i]) w[i] = ptx::load_relaxed_gpu_pair(mine + isa::spread_word(2 * WARP_LANES, M::INPUT_SPREAD) * (g + i));
    };
    const auto have_come = [&] {
      bool ready = true;
#pragma unroll
      for (int i = 0; i < GROUP; i++) {
        missing[i] = word_epoch(w[i].x) != epoch | word_epoch(w[i].y) != epoch;
        ready &= !missing[i];
      }
      return ready;
    };
    poll(context, Wait::INPUT, first + g * WARP_LANES, ask, have_come);
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
      if (g + i >= PER_LANE) continue;
      uint2 x = make_uint2(word_payload(w[i].x), word_payload(w[i].y));
      if constexpr (M::NORM) {
        const float a = ptx::low_bf16(x.x), b = ptx::high_bf16(x.x), c = ptx::low_bf16(x.y), d = ptx::high_bf16(x.y);
        square_sum += a * a + b * b + c * c + d * d;
        x = make_uint2(ptx::pack_bf16(a * weight[i].x, b * weight[i].y), ptx::pack_bf16(c * weight[i].z, d * weight[i].w));
      }
      input.put(g + i, x);
    }
  }
  return square_sum;
}

}  // namespace jitmk::vm
