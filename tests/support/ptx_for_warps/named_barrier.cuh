#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

template <int, int>
void barrier_sync();
template <int, int>
void barrier_arrive() {}

}  // namespace jitmk::ptx
