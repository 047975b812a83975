// Eight values at a time: bf16 in memory, fp32 in registers; and sums over a warp or a CTA.
#pragma once
#include "jitmk/ptx/convert.cuh"

namespace jitmk::prefill {

struct Eight {
  float at[8];
};

__device__ __forceinline__ Eight widen(uint4 x) {
  return {{ptx::low_bf16(x.x), ptx::high_bf16(x.x), ptx::low_bf16(x.y), ptx::high_bf16(x.y), ptx::low_bf16(x.z), ptx::high_bf16(x.z),
           ptx::low_bf16(x.w), ptx::high_bf16(x.w)}};
}

__device__ __forceinline__ Eight load_bf16(const u16* p) { return widen(*reinterpret_cast<const uint4*>(p)); }

__device__ __forceinline__ void store_bf16(u16* p, const Eight& x) {
  const float* v = x.at;
  *reinterpret_cast<uint4*>(p) =
      make_uint4(ptx::pack_bf16(v[0], v[1]), ptx::pack_bf16(v[2], v[3]), ptx::pack_bf16(v[4], v[5]), ptx::pack_bf16(v[6], v[7]));
}

__device__ __forceinline__ Eight load_fp32(const float* p) {
  const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ __forceinline__ void store_fp32(float* p, const Eight& x) {
  const float* v = x.at;
  *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
  *reinterpret_cast<float4*>(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// The sum over a warp, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = WARP_LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
  return x;
}

// The sum over a CTA of THREADS, in every thread. `shared` has room for a float a warp.
template <int THREADS>
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if constexpr (THREADS == WARP_LANES) return x;
  __syncthreads();  // nobody reads the sums of the time before any more
  if (threadIdx.x % WARP_LANES == 0) shared[threadIdx.x / WARP_LANES] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < THREADS / WARP_LANES; i++) sum += shared[i];
  return sum;
}

}  // namespace jitmk::prefill
