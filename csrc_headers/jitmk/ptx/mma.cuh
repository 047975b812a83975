// Tensor cores (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type").
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

// D[16x8] += A[16x16] B[16x8] in fp32, with rows 8..15 of A zero.
// Lane l holds A[l/4][k], B[k][l/4] for k in {2q, 2q+1} (a0, b0) and {2q+8, 2q+9} (a2, b1), q = l % 4,
// and D[l/4][2q], D[l/4][2q+1] in d[0], d[1].
__device__ __forceinline__ void mma_m8n8k16(float (&d)[4], u32 a0, u32 a2, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(0), "r"(a2), "r"(0), "r"(b0), "r"(b1));
}

// D[16x8] += A[16x16] B[16x8] in fp32. `a` holds A[l/4] in x, z and A[l/4 + 8] in y, w; D[l/4 + 8] is in d[2], d[3].
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], uint4 a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The same with nothing added: D = A B.
__device__ __forceinline__ void mma_m16n8k16_first(float (&d)[4], uint4 a, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "f"(0.0f));
}

}  // namespace jitmk::ptx
