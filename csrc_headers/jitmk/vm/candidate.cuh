// Sampling: the Gumbel-max trick over the vocabulary, with noise from a counter-based generator.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/context.cuh"

namespace jitmk::vm {

// The best token so far; of equal keys the lowest token, so that the result does not depend on who computed what.
struct Candidate {
  float key = ptx::minus_infinity();
  int token = isa::NO_TOKEN;

  __device__ __forceinline__ void offer(float k, int t) {
    if (k > key || (k == key && t < token && token != isa::NO_TOKEN)) key = k, token = t;
  }

  // The best of WIDTH neighbouring lanes, in each of them.
  template <int WIDTH>
  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2) {
      const float other_key = __shfl_xor_sync(ALL_LANES, key, distance);
      const int other_token = __shfl_xor_sync(ALL_LANES, token, distance);
      offer(other_key, other_token);
    }
  }
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
__device__ __forceinline__ uint4 philox(uint4 counter, u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    const u32 high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// Gumbel noise of the token `8 * unit + row` for the position that it would take; 0 when sampling is greedy.
__device__ __forceinline__ float gumbel_of_row(const Params& p, int position, int unit, int row) {
  if (p.greedy) return 0;
  const uint4 bits = philox(make_uint4(unit * 2 + row / 4, position, 0, 0), p.seed_low, p.seed_high);
  const u32 x = row % 4 == 0 ? bits.x : row % 4 == 1 ? bits.y : row % 4 == 2 ? bits.z : bits.w;
  const float u = static_cast<float>(x >> 9) * 0x1p-23f + 0x1p-24f;  // in (0, 1), and exact: 1 would be infinite noise
  return -logf(-logf(u));
}

}  // namespace jitmk::vm
