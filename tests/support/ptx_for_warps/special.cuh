#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

inline u64 clock() { return 0; }

[[noreturn]] inline void exit_thread() { std::abort(); }

}  // namespace jitmk::ptx
