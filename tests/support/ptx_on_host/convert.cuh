// What stands for ptx/convert.cuh on the host.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

// To nearest even, as cvt.rn does; NaN as it gives it.
inline u32 bf16_of(float x) {
  const u32 bits = __float_as_uint(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline u32 pack_bf16(float low, float high) { return bf16_of(low) | bf16_of(high) << 16; }
inline float low_bf16(u32 packed) { return __uint_as_float(packed << 16); }
inline float high_bf16(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }
inline float minus_infinity() { return __uint_as_float(0xff800000u); }
inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float reciprocal_approx(float x) { return 1 / x; }
inline float rsqrt_approx(float x) { return 1 / std::sqrt(x); }

}  // namespace jitmk::ptx
