// What stands for ptx/fence.cuh on the host, where every access is seen at once.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::ptx {

inline void fence_proxy_async_shared() {}
inline void fence_proxy_async_global() {}
inline void fence_gpu() {}
inline void fence_system() {}

}  // namespace jitmk::ptx
