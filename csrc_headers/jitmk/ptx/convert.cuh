// bf16 in and out of registers (PTX ISA, "cvt").
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

// Two floats, rounded to nearest even; `low` in bits 0..15.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

__device__ __forceinline__ float low_bf16(u32 packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_bf16(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// 2^x in the special function unit; 2^-inf is 0 (PTX ISA, "ex2").
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The logarithm of base 2 in the same unit; of 0 it is -inf (PTX ISA, "lg2").
__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1/x to one unit in the last place (PTX ISA, "rcp").
__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1/sqrt(x) to a relative error of 2^-22.4 (PTX ISA, "rsqrt").
__device__ __forceinline__ float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace jitmk::ptx
