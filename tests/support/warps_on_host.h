// Warps on the host: 32 lanes each, that meet in shuffles and votes, taking turns in an order that a seed decides.
//
// Every lane is a fibre with a stack of its own. It runs until it has to wait for the other lanes of its warp. There is
// no preemption: between two meetings a lane is alone, so atomics need be none.
#pragma once
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

namespace host {

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 64 * 1024;

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int lane;
  long meetings = 0;
  bool done = false;
};

struct Warp {
  Fibre fibre[LANES];
  long arrivals = 0;
  unsigned long long slot[2][LANES];  // of this meeting, and of the one that slower lanes still read
};

inline ucontext_t scheduler;
inline Warp* warp;
inline Fibre* fibre;
inline const std::function<void(int, int)>* body;
inline int warp_index;

inline void yield() { swapcontext(&fibre->context, &scheduler); }

inline void run_fibre() {
  (*body)(warp_index, fibre->lane);
  fibre->done = true;
  while (true) yield();
}

// What every lane of this warp brings to a meeting.
inline const unsigned long long* meet(unsigned long long value) {
  Warp* mine = warp;
  Fibre* self = fibre;
  unsigned long long* slot = mine->slot[self->meetings++ % 2];
  slot[self->lane] = value;
  mine->arrivals++;
  while (mine->arrivals < self->meetings * LANES) yield();
  return slot;
}

template <class T>
T shuffle(T value, int source) {
  unsigned long long bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet(bits)[source];
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Runs f(warp, lane) on `count` warps to their end. Exits with an error where they stand still for long.
inline void run(int count, unsigned seed, const std::function<void(int, int)>& f) {
  std::vector<std::unique_ptr<Warp>> warps;
  body = &f;
  for (int w = 0; w < count; w++) {
    warps.push_back(std::make_unique<Warp>());
    for (int lane = 0; lane < LANES; lane++) {
      Fibre& one = warps[w]->fibre[lane];
      one.lane = lane;
      one.stack = std::make_unique<char[]>(STACK_BYTES);
      getcontext(&one.context);
      one.context.uc_stack.ss_sp = one.stack.get();
      one.context.uc_stack.ss_size = STACK_BYTES;
      one.context.uc_link = nullptr;
      makecontext(&one.context, run_fibre, 0);
    }
  }
  std::mt19937 random(seed);
  for (int unfinished = count, turns = 0; unfinished > 0; turns++) {
    if (turns > 1000000) {
      std::fprintf(stderr, "%d warps of %d never end\n", unfinished, count);
      std::exit(1);
    }
    warp_index = random() % count;
    warp = warps[warp_index].get();
    if (warp->fibre[0].done) continue;
    for (Fibre& one : warp->fibre) {
      fibre = &one;
      if (!one.done) swapcontext(&scheduler, &one.context);
    }
    unfinished -= warp->fibre[0].done;
  }
}

}  // namespace host

inline void __syncwarp() { host::meet(0); }
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return host::shuffle(value, source % host::LANES);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return host::shuffle(value, host::fibre->lane ^ distance);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance, int width) {
  const int lane = host::fibre->lane;
  return host::shuffle(value, lane % width < distance ? lane : lane - distance);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const unsigned long long* votes = host::meet(vote);
  unsigned ballot = 0;
  for (int lane = 0; lane < host::LANES; lane++) ballot |= static_cast<unsigned>(votes[lane]) << lane;
  return ballot;
}
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) == ~0u; }
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline unsigned atomicExch(unsigned* p, unsigned v) {
  const unsigned before = *p;
  *p = v;
  return before;
}
inline unsigned atomicOr(unsigned* p, unsigned v) {
  const unsigned before = *p;
  *p |= v;
  return before;
}
