// What stands for ptx/memory.cuh on the host.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

struct Pair64 {
  u64 x, y;
};

template <class T>
T look(const T* p) {
  machine::looked();
  return *p;
}
template <class T>
void publish(T* p, T v) {
  *p = v;
  machine::changed();
}

inline u64 load_relaxed_gpu(const u64* p) { return look(p); }
inline Pair64 load_relaxed_gpu_pair(const u64* p) {
  if (reinterpret_cast<u64>(p) % 16 != 0) std::fprintf(stderr, "a pair of words at %p is not aligned\n", static_cast<const void*>(p)), machine::fail();
  return {look(p), look(p + 1)};
}
inline void store_relaxed_gpu(u64* p, u64 v) { publish(p, v); }
inline u32 load_acquire_gpu(const u32* p) { return look(p); }
inline u32 load_relaxed_gpu(const u32* p) { return look(p); }
inline void store_relaxed_gpu(u32* p, u32 v) { publish(p, v); }
inline void store_relaxed_system(u64* p, u64 v) { publish(p, v); }
inline void store_shared_if(bool wanted, u32* p, u32 v) {
  if (wanted) *p = v;
}
inline void add_relaxed_gpu(u64* p, u64 v) { publish(p, *p + v); }
inline u32 compare_and_swap_gpu(u32* p, u32 expected, u32 v) {
  const u32 before = *p;
  if (before == expected) publish(p, v);
  return before;
}

}  // namespace jitmk::ptx
