// What stands for ptx/mbarrier.cuh on the host.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

using Barrier = u64;

inline void mbarrier_init(Barrier* b, int arrivals) {
  const machine::Barrier fresh{static_cast<u32>(arrivals), static_cast<u32>(arrivals), 0, 0};
  std::memcpy(b, &fresh, sizeof fresh);
}
inline void mbarrier_arrive_expect(Barrier* b, int bytes) { machine::advance(reinterpret_cast<machine::Barrier*>(b), 1, bytes); }
inline void mbarrier_arrive(Barrier* b) { machine::advance(reinterpret_cast<machine::Barrier*>(b), 1, 0); }
inline void mbarrier_arrive(Barrier* b, int arrivals) { machine::advance(reinterpret_cast<machine::Barrier*>(b), arrivals, 0); }
inline bool mbarrier_try_wait(Barrier* b, u32 parity) { return machine::over(reinterpret_cast<machine::Barrier*>(b), parity); }

// One look for the whole warp, as one instruction is: nobody waits for what it finds.
inline bool mbarrier_test_wait(Barrier* b, u32 parity) {
  return machine::shuffle({__FILE__, __LINE__}, ~0u, reinterpret_cast<machine::Barrier*>(b)->parity != parity, 0);
}

// Only the watchdog's: it sleeps until all is over, for nothing hangs here without being found out.
inline bool mbarrier_try_wait(Barrier* b, u32, u32) {
  machine::sleep_until_over(reinterpret_cast<machine::Barrier*>(b));
  return true;
}

}  // namespace jitmk::ptx
