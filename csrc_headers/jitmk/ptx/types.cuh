// Fixed-width names. The device library includes no header of CUDA or the host, so that NVRTC needs none either.
#pragma once

namespace jitmk {

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;
static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8 && sizeof(i64) == 8, "unexpected integer widths");

constexpr int WARP_LANES = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

}  // namespace jitmk
