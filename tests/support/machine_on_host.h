// A GPU on the host, as far as the megakernel goes: all threads of all CTAs are fibers, and one of them runs at a time.
//
// A thread runs until it meets the others of its warp at a collective, and then any other may run: who goes on is drawn at
// random from a seed. A warp whose vote failed sleeps until something has changed that it might be waiting for. Bulk copies
// land later, in any order. So what is missing a wait fails for some seed, waits that nobody will ever end are an error at
// once, and so are lanes of a warp that meet in different places.
#pragma once
#include <ucontext.h>

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "cuda_on_host.h"

#define __shared__
#define __align__(n) __attribute__((aligned(n)))

dim3 blockIdx, threadIdx, gridDim;

namespace machine {

constexpr int LANES = 32;
constexpr std::uint64_t NEVER = std::numeric_limits<std::uint64_t>::max();

// mbarrier: arrivals that a phase takes, arrivals and bytes that are missing in the present one, its parity.
struct Barrier {
  std::uint32_t expected : 10, missing : 10, parity : 1;
  std::int32_t bytes;
};
static_assert(sizeof(Barrier) == 8, "a barrier is 8 bytes");

struct Place {
  const char* file;
  int line;
};

struct Fiber {
  ucontext_t start;
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  bool started = false;
  std::uint64_t seen = NEVER;  // when it first looked at something that others change, since the warp's last vote
};

struct Warp {
  int arrived = 0;
  Place place{"", 0};
  int turn = 0;
  std::uint64_t slots[2][LANES];  // what lanes hand each other
  std::uint64_t seen = NEVER;  // the least of its fibers'
};

struct Cta {
  int arrived = 0;
  int came = 0;  // to the barrier that has a number
  std::vector<int> waiting;  // fibers there
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
  Barrier* barrier;
};

struct Watchdog {
  int fiber;
  const Barrier* barrier;
};

struct State {
  const std::function<void()>* body = nullptr;
  int threads = 0;  // of a CTA
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Cta> ctas;
  std::vector<char> slow;  // warps
  std::vector<int> ready, sleepers;  // fibers, warps
  std::vector<Watchdog> watchdogs;
  std::vector<Copy> copies;
  std::uint64_t progress = 0;  // changes of what others may look at
  int running = -1, unfinished = 0;
  jmp_buf scheduler;
  unsigned __int128 random = 1;
  bool failed = false;
};
inline State state;

inline Warp& warp() { return state.warps[state.running / LANES]; }
inline int lane() { return state.running % LANES; }

inline void changed() { state.progress++; }

[[noreturn]] inline void to_scheduler() { _longjmp(state.scheduler, 1); }
[[noreturn]] inline void fail() {
  state.failed = true;
  to_scheduler();
}
[[noreturn]] inline void end_thread() {
  state.unfinished--;
  changed();
  to_scheduler();
}

// Lets others run; goes on when somebody has put the fiber among the ready ones again.
__attribute__((noinline)) inline void suspend() {
  if (_setjmp(state.fibers[state.running].here) == 0) to_scheduler();
}

inline void wake(int warp, int but) {
  for (int i = warp * LANES; i < (warp + 1) * LANES; i++)
    if (i != but) state.ready.push_back(i);
}

inline void looked() {
  Fiber& fiber = state.fibers[state.running];
  if (state.progress < fiber.seen) fiber.seen = state.progress;
}

inline void arrive(Warp& w, Place place) {
  if (w.arrived == 0) {
    w.place = place;
  } else if (w.place.line != place.line || (w.place.file != place.file && std::strcmp(w.place.file, place.file) != 0)) {
    std::fprintf(stderr, "CTA %d, warp %d: lanes have come apart: %d are at %s:%d, lane %d is at %s:%d\n", state.running / state.threads,
                 state.running % state.threads / LANES, w.arrived, w.place.file, w.place.line, lane(), place.file, place.line);
    fail();
  }
  w.arrived++;
}

template <class T>
std::uint64_t to_slot(T value) {
  std::uint64_t slot = 0;
  std::memcpy(&slot, &value, sizeof value);
  return slot;
}
template <class T>
T from_slot(std::uint64_t slot) {
  T value;
  std::memcpy(&value, &slot, sizeof value);
  return value;
}

// The values of all lanes: two sets of slots by turns, for no lane can be two collectives ahead of another. `sleeps`, asked
// once, says whether the warp sleeps now.
template <class T, class Sleeps>
const std::uint64_t* exchange(Place place, T value, Sleeps sleeps) {
  Warp& w = warp();
  const std::uint64_t* slots = w.slots[w.turn];
  w.slots[w.turn][lane()] = to_slot(value);
  arrive(w, place);
  if (w.arrived < LANES) {
    suspend();
    return slots;
  }
  w.arrived = 0, w.turn ^= 1;
  if (sleeps(slots)) {
    state.sleepers.push_back(state.running / LANES);
    suspend();
  } else {
    wake(state.running / LANES, state.running);
  }
  return slots;
}
template <class T>
const std::uint64_t* exchange(Place place, T value) {
  return exchange(place, value, [](const std::uint64_t*) { return false; });
}

template <class T>
T shuffle(Place place, unsigned, T value, int from) {
  return from_slot<T>(exchange(place, value)[from & (LANES - 1)]);
}
template <class T>
T shuffle_xor(Place place, unsigned, T value, int mask) {
  return from_slot<T>(exchange(place, value)[lane() ^ mask]);
}
template <class T>
T shuffle_down(Place place, unsigned, T value, int distance) {
  const std::uint64_t* slots = exchange(place, value);
  return from_slot<T>(slots[lane() + distance < LANES ? lane() + distance : lane()]);
}
template <class T>
T shuffle_up(Place place, unsigned, T value, int distance, int width = LANES) {
  const std::uint64_t* slots = exchange(place, value);
  return from_slot<T>(slots[lane() % width < distance ? lane() : lane() - distance]);
}
inline unsigned ballot(Place place, unsigned, bool mine) {
  const std::uint64_t* slots = exchange(place, static_cast<int>(mine));
  unsigned votes = 0;
  for (int i = 0; i < LANES; i++) votes |= static_cast<unsigned>(slots[i]) << i;
  return votes;
}
inline void sync(Place place) { exchange(place, 0); }

inline bool unanimous(const std::uint64_t* slots) {
  for (int i = 0; i < LANES; i++)
    if (slots[i] == 0) return false;
  return true;
}

// The device code votes in order to wait. After a vote that fails, nothing will be different before something has changed
// that was looked at.
inline bool all(Place place, unsigned, bool mine) {
  Warp& w = warp();
  Fiber& fiber = state.fibers[state.running];
  if (w.arrived == 0) w.seen = NEVER;
  if (fiber.seen < w.seen) w.seen = fiber.seen;
  fiber.seen = NEVER;
  return unanimous(exchange(place, static_cast<int>(mine), [&w](const std::uint64_t* slots) { return !unanimous(slots) && w.seen == state.progress; }));
}
inline bool any(Place place, unsigned, bool mine) {
  looked();
  const std::uint64_t* slots = exchange(place, static_cast<int>(mine));
  for (int i = 0; i < LANES; i++)
    if (slots[i] != 0) return true;
  return false;
}

inline void sync_cta() {
  Cta& cta = state.ctas[blockIdx.x];
  if (++cta.arrived < state.threads) return suspend();
  const int first = blockIdx.x * state.threads;
  for (int i = first; i < first + state.threads; i++)
    if (i != state.running) state.ready.push_back(i);
}

// A barrier of so many threads of a CTA, for those who wait and those who only count.
inline void meet_in_cta(int threads, bool waits) {
  Cta& cta = state.ctas[blockIdx.x];
  if (++cta.came == threads) {
    cta.came = 0;
    for (int fiber : cta.waiting) state.ready.push_back(fiber);
    cta.waiting.clear();
  } else if (waits) {
    cta.waiting.push_back(state.running);
    suspend();
  }
}

// Those who do not vote, but look again and again, give others their turn.
inline bool over(const Barrier* barrier, std::uint32_t parity) {
  looked();
  if (barrier->parity != parity) return true;
  state.ready.push_back(state.running);
  suspend();
  return false;
}
inline void advance(Barrier* barrier, int arrivals, int bytes) {
  barrier->missing -= arrivals, barrier->bytes += bytes;
  if (barrier->missing == 0 && barrier->bytes == 0) barrier->missing = barrier->expected, barrier->parity ^= 1;
  changed();
}

// The watchdog, a lane by itself, sleeps until the first phase of a barrier is over.
inline void sleep_until_over(const Barrier* barrier) {
  if (barrier->parity != 0) return;
  state.watchdogs.push_back({state.running, barrier});
  suspend();
}

inline void land(std::size_t index) {
  const Copy copy = state.copies[index];
  state.copies[index] = state.copies.back();
  state.copies.pop_back();
  std::memcpy(copy.to, copy.from, copy.bytes);
  advance(copy.barrier, 0, -copy.bytes);
}

// A number below another (Lehmer's generator; what is drawn here needs no better one).
inline std::size_t draw(std::size_t below) {
  state.random *= 0xda942042e4dd58b5u;
  return static_cast<std::size_t>((state.random >> 64) * below >> 64);
}

// Makes those ready that have something new to look at. False: there is nobody.
inline bool wake_sleepers() {
  const std::size_t before = state.ready.size();
  std::vector<int> still;
  for (int w : state.sleepers) {
    if (state.warps[w].seen == state.progress)
      still.push_back(w);
    else
      wake(w, -1);
  }
  state.sleepers.swap(still);
  std::vector<Watchdog> watching;
  for (const Watchdog& dog : state.watchdogs) {
    if (dog.barrier->parity == 0)
      watching.push_back(dog);
    else
      state.ready.push_back(dog.fiber);
  }
  state.watchdogs.swap(watching);
  return state.ready.size() > before;
}

// For a while some CTAs and some warps are slow: otherwise all would come along at the same pace.
constexpr std::size_t REDRAWN = 30000, SLOWNESS = 30;
inline void draw_slow(int ctas) {
  const std::size_t per_cta = state.warps.size() / ctas;
  for (int cta = 0; cta < ctas; cta++) {
    const bool slow = draw(3) == 0;
    for (std::size_t w = 0; w < per_cta; w++) state.slow[cta * per_cta + w] = slow || draw(3) == 0;
  }
}

inline void report_deadlock() {
  std::fprintf(stderr, "everybody waits, and nobody will ever be done:\n");
  for (int w : state.sleepers)
    std::fprintf(stderr, "  CTA %d, warp %d: %s:%d\n", w * LANES / state.threads, w * LANES % state.threads / LANES, state.warps[w].place.file, state.warps[w].place.line);
  for (std::size_t w = 0; w < state.warps.size(); w++)
    if (state.warps[w].arrived != 0)
      std::fprintf(stderr, "  CTA %zu, warp %zu: %d lanes at %s:%d\n", w * LANES / state.threads, w * LANES % state.threads / LANES, state.warps[w].arrived,
                   state.warps[w].place.file, state.warps[w].place.line);
}

inline void run_thread() {
  (*state.body)();
  end_thread();
}

inline void start(int index, std::size_t stack_bytes) {
  Fiber& fiber = state.fibers[index];
  fiber.stack.reset(new char[stack_bytes]);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get(), fiber.start.uc_stack.ss_size = stack_bytes, fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_thread, 0);
  state.ready.push_back(index);
}

// One fiber goes on until it suspends itself.
inline void dispatch(int index) {
  Fiber& fiber = state.fibers[index];
  state.running = index;
  blockIdx.x = index / state.threads, threadIdx.x = index % state.threads;
  if (_setjmp(state.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

// Runs a grid. Returns whether it came to its end.
inline bool run(int ctas, int threads, unsigned seed, const std::function<void()>& body) {
  constexpr std::size_t STACK_BYTES = 128 * 1024;
  state = State();
  state.threads = threads, state.body = &body, state.random = static_cast<unsigned __int128>(seed) << 64 | 0x9e3779b97f4a7c15u, state.unfinished = ctas * threads;
  state.fibers.resize(ctas * threads), state.warps.resize(ctas * threads / LANES), state.ctas.resize(ctas), state.slow.resize(ctas * threads / LANES);
  draw_slow(ctas);
  gridDim = {static_cast<unsigned>(ctas), 1, 1};
  for (int i = 0; i < ctas * threads; i++) start(i, STACK_BYTES);
  while (state.unfinished > 0 && !state.failed) {
    if (!state.copies.empty() && (state.ready.empty() || draw(64) == 0)) land(draw(state.copies.size()));
    if (state.ready.empty() || draw(4096) == 0) wake_sleepers();
    if (state.ready.empty()) {
      if (!state.copies.empty()) continue;
      report_deadlock();
      return false;
    }
    if (draw(REDRAWN) == 0) draw_slow(ctas);
    std::size_t i = draw(state.ready.size());
    for (int again = 0; again < 4 && state.slow[state.ready[i] / LANES] && draw(SLOWNESS) != 0; again++) i = draw(state.ready.size());
    const int fiber = state.ready[i];
    state.ready[i] = state.ready.back();
    state.ready.pop_back();
    dispatch(fiber);
  }
  return !state.failed;
}

}  // namespace machine

#define __shfl_sync(...) machine::shuffle({__FILE__, __LINE__}, __VA_ARGS__)
#define __shfl_xor_sync(...) machine::shuffle_xor({__FILE__, __LINE__}, __VA_ARGS__)
#define __shfl_down_sync(...) machine::shuffle_down({__FILE__, __LINE__}, __VA_ARGS__)
#define __shfl_up_sync(...) machine::shuffle_up({__FILE__, __LINE__}, __VA_ARGS__)
#define __ballot_sync(...) machine::ballot({__FILE__, __LINE__}, __VA_ARGS__)
#define __all_sync(...) machine::all({__FILE__, __LINE__}, __VA_ARGS__)
#define __any_sync(...) machine::any({__FILE__, __LINE__}, __VA_ARGS__)
#define __syncwarp() machine::sync({__FILE__, __LINE__})
#define __syncthreads() machine::sync_cta()

template <class T>
using Same = typename std::enable_if<true, T>::type;  // converted to T, which follows from the other argument

// Records of who waits for what are for the watchdog only, but for the flag that tells warps to leave.
template <class T>
T atomicExch(T* at, Same<T> value) {
  const T before = *at;
  *at = value;
  if (before != value) machine::changed();
  return before;
}
template <class T>
T atomicOr(T* at, Same<T> value) {
  const T before = *at;
  *at |= value;
  return before;
}
template <class T>
T atomicMax(T* at, Same<T> value) {
  const T before = *at;
  if (value > before) *at = value;
  return before;
}
