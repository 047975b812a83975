// Enough for templates that are not used here to be parsed.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

using Barrier = u64;

void mbarrier_init(Barrier*, int);
bool mbarrier_try_wait(Barrier*, u32);
inline void mbarrier_arrive(Barrier*) {}

}  // namespace jitmk::ptx
