// What stands for ptx/special.cuh on the host.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

inline u64 global_timer() { return 0; }
inline u64 clock() { return machine::state.progress; }
inline int opaque(int x) { return x; }
template <class T>
void settle(T&) {}
inline unsigned char* settled(unsigned char* shared) { return shared; }
template <int>
void take_registers() {}
template <int>
void leave_registers() {}
[[noreturn]] inline void exit_thread() { machine::end_thread(); }

}  // namespace jitmk::ptx
