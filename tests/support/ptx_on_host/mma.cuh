// What stands for ptx/mma.cuh on the host; the fragments lie as that file says.
#pragma once
#include "jitmk/ptx/convert.cuh"

namespace jitmk::ptx {

// One register of A or B of every lane.
struct Registers {
  u32 of[WARP_LANES];

  explicit Registers(u32 mine) {
    const std::uint64_t* slots = machine::exchange({__FILE__, __LINE__}, mine);
    for (int lane = 0; lane < WARP_LANES; lane++) of[lane] = machine::from_slot<u32>(slots[lane]);
  }
};

// Eight rows of D, of which a lane has two neighbours; `a` and `b` for each half of k.
inline void add_products(float* d, const Registers (&a)[2], const Registers (&b)[2]) {
  const int row = machine::lane() / 4;
  for (int i = 0; i < 2; i++) {
    const int column = machine::lane() % 4 * 2 + i;
    for (int half = 0; half < 2; half++)
      for (int quad = 0; quad < 4; quad++) {
        const u32 x = a[half].of[row * 4 + quad], y = b[half].of[column * 4 + quad];
        d[i] += low_bf16(x) * low_bf16(y) + high_bf16(x) * high_bf16(y);
      }
  }
}

inline void mma_m8n8k16(float (&d)[4], u32 a0, u32 a2, u32 b0, u32 b1) {
  const Registers a[2] = {Registers(a0), Registers(a2)}, b[2] = {Registers(b0), Registers(b1)};
  add_products(d, a, b);
}

inline void mma_m16n8k16(float (&d)[4], uint4 a, u32 b0, u32 b1) {
  const Registers upper[2] = {Registers(a.x), Registers(a.z)}, lower[2] = {Registers(a.y), Registers(a.w)};
  const Registers b[2] = {Registers(b0), Registers(b1)};
  add_products(d, upper, b);
  add_products(d + 2, lower, b);
}

inline void mma_m16n8k16_first(float (&d)[4], uint4 a, u32 b0, u32 b1) {
  for (float& x : d) x = 0;
  mma_m16n8k16(d, a, b0, b1);
}

}  // namespace jitmk::ptx
