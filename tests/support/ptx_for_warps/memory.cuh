// On the host one thread runs at a time, and memory is what it last wrote.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

struct Pair64 {
  u64 x, y;
};

inline u64 load_relaxed_gpu(const u64* p) { return *p; }
inline u32 load_relaxed_gpu(const u32* p) { return *p; }
inline void store_relaxed_gpu(u64* p, u64 v) { *p = v; }
inline void store_relaxed_gpu(u32* p, u32 v) { *p = v; }
inline void store_shared_if(bool wanted, u32* p, u32 v) {
  if (wanted) *p = v;
}
inline void add_relaxed_gpu(u64* p, u64 v) { *p += v; }

}  // namespace jitmk::ptx
