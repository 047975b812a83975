// Whole kernels on the host: the threads of a CTA are fibers that take turns, a CTA runs after the other. A thread runs
// until it waits for others, so nothing is lost that a barrier would have kept, and everything that lacks one may show.
#pragma once
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "cuda_on_host.h"

#define __shared__ static

dim3 blockIdx, threadIdx, gridDim;

namespace host_grid {

struct Barrier {
  int expected, arrived = 0;
  unsigned long generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

inline std::vector<Fiber> fibers;
inline std::vector<Barrier> warps;
inline Barrier cta;
inline ucontext_t scheduler;
inline int running;
inline unsigned long progress;  // barriers that opened, and threads that ended
inline const std::function<void()>* body;
inline std::vector<double> exchanged;  // a slot a thread, for shuffles

inline void wait(Barrier& barrier) {
  const unsigned long mine = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0, barrier.generation++, progress++;
    return;
  }
  const int me = running;
  while (barrier.generation == mine) swapcontext(&fibers[me].context, &scheduler);
}

inline void run_thread() {
  (*body)();
  fibers[running].done = true, progress++;
}

inline void run_cta(int threads) {
  constexpr int STACK = 256 * 1024;
  fibers.resize(threads), exchanged.resize(threads);
  warps.assign(threads / 32, {32}), cta = {threads};
  for (Fiber& fiber : fibers) {
    if (!fiber.stack) fiber.stack.reset(new char[STACK]);
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get(), fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run_thread, 0);
  }
  for (bool left = true; left;) {
    left = false;
    const unsigned long before = progress;
    for (int i = 0; i < threads; i++) {
      if (fibers[i].done) continue;
      left = true, running = i, threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
    }
    if (left && progress == before) std::fputs("threads of a CTA wait for each other for ever\n", stderr), std::abort();
  }
}

inline void run(int blocks, int threads, const std::function<void()>& kernel) {
  body = &kernel, gridDim = {static_cast<unsigned>(blocks), 1, 1};
  for (int block = 0; block < blocks; block++) blockIdx = {static_cast<unsigned>(block), 0, 0}, run_cta(threads);
}

}  // namespace host_grid

inline void __syncwarp() { host_grid::wait(host_grid::warps[threadIdx.x / 32]); }
inline void __syncthreads() { host_grid::wait(host_grid::cta); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int me = threadIdx.x;
  host_grid::exchanged[me] = value;
  __syncwarp();
  const T other = static_cast<T>(host_grid::exchanged[me ^ mask]);
  __syncwarp();
  return other;
}

// To nearest even, as cvt.rn does.
inline unsigned bf16_bits(float x) {
  const unsigned bits = __float_as_uint(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
