// What stands for ptx/bulk_copy.cuh on the host: a copy lands later.
#pragma once
#include "jitmk/ptx/mbarrier.cuh"

namespace jitmk::ptx {

inline u64 evict_first_policy() { return 0; }

inline void bulk_load(void* to, const void* from, int bytes, Barrier* b, u64) {
  if (bytes % 16 != 0 || reinterpret_cast<u64>(to) % 16 != 0 || reinterpret_cast<u64>(from) % 16 != 0) {
    std::fprintf(stderr, "a bulk copy of %d bytes from %p to %p is not aligned\n", bytes, from, to);
    machine::fail();
  }
  machine::state.copies.push_back({to, from, bytes, reinterpret_cast<machine::Barrier*>(b)});
}

}  // namespace jitmk::ptx
