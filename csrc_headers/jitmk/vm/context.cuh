// What every role of a CTA knows, and how it waits.
#pragma once
#include "jitmk/ptx/fence.cuh"
#include "jitmk/ptx/mbarrier.cuh"
#include "jitmk/ptx/named_barrier.cuh"
#include "jitmk/ptx/special.cuh"
#include "jitmk/vm/words.cuh"

namespace jitmk::vm {

using isa::Mark;
using isa::Params;
using isa::Wait;

constexpr int CONSUMER_WARPS = isa::CONSUMER_WARPS;
constexpr int LOADER_WARP = CONSUMER_WARPS;
constexpr int STORER_WARP = CONSUMER_WARPS + 1;
constexpr int WORKING_WARPS = isa::WORKING_WARPS;
constexpr int WATCHDOG_WARP = WORKING_WARPS;
constexpr int THREADS = isa::WARPS * WARP_LANES;
constexpr int MEETING = 1, CONSUMER_THREADS = CONSUMER_WARPS * WARP_LANES;  // the number of the barrier where consumers meet

// Of a thread, out of 64K of an SM that are dealt evenly at first. Consumers keep weights in theirs while they wait.
constexpr int CONSUMER_REGISTERS = 216, OTHER_REGISTERS = 72;
static_assert(WARP_LANES * (CONSUMER_WARPS * CONSUMER_REGISTERS + (isa::WARPS - CONSUMER_WARPS) * OTHER_REGISTERS) <= 65536,
              "an SM has 64K registers");
static_assert(CONSUMER_WARPS % 4 == 0 && isa::WARPS % 4 == 0, "registers are dealt to groups of four warps");

// Where a warp is and what it last had to wait for: written by the warp, read by the watchdog.
struct WarpRecord {
  u32 place;  // step << 16 | instruction
  u32 wait;   // Wait << 24 | index
};

// One instruction of a queue, spread over the lanes of a warp: lane i holds word i.
struct Instruction {
  int word;
  int variant;  // in every lane: who runs what is decided at once

  // NOTE: the variant comes by shuffle, not from memory. Each lane's own load of it, asked for an instruction ahead, went to a
  // uniform register as soon as it was asked for: every instruction began with a wait for the next one to arrive.
  __device__ __forceinline__ static Instruction of(int word) { return {word, __shfl_sync(ALL_LANES, word, isa::VARIANT)}; }
  __device__ __forceinline__ int operator[](int index) const { return __shfl_sync(ALL_LANES, word, index); }
};

// A role's place in the step.
template <class G>
struct Context {
  const Params& params;
  typename G::Shared& shared;
  int warp, lane;
  int step = 0, instruction = 0;

  __device__ __forceinline__ void enter(int index) {
    instruction = index;
    note(&shared.record[warp].place, step << 16 | index);
    note(&shared.record[warp].wait, static_cast<u32>(Wait::NOTHING) << 24);
  }

  // Writes to this warp's record, which the watchdog reads at any time.
  __device__ __forceinline__ void note(u32* word, u32 value) const {
    if constexpr (G::race_check) {
      if (lane == 0) atomicExch(word, value);
    } else {
      ptx::store_shared_if(lane == 0, word, value);
    }
  }

  // Waits are short in code, for they are everywhere: they say what they wait for and look at one flag. It is the
  // watchdog that knows the time.
  __device__ __forceinline__ void begin_wait(Wait wait, u32 index) const {
    note(&shared.record[warp].wait, static_cast<u32>(wait) << 24 | (index & 0xffffff));
  }
  __device__ __forceinline__ bool told_to_leave() const { return __any_sync(ALL_LANES, told() != 0); }
  // The flag, in some lane at least.
  __device__ __forceinline__ u32 told() const {
    if constexpr (G::race_check) return lane == 0 ? atomicOr(&shared.leave, 0) : 0;
    return *const_cast<const volatile u32*>(&shared.leave);
  }
  // A warp that leaves has done all that it ever will, and says so: at a stop that is as good as the end. A consumer is not
  // waited for at the next meeting either, after which the others know that it has left (Consumer::meet).
  __device__ __forceinline__ void leave_if_told() const {
    if (told_to_leave()) leave();
  }
  // Between the loads of a poll and the look at what they bring, so that it takes no time of its own.
  __device__ __forceinline__ void while_polling(Wait wait, u32 index) const {
    begin_wait(wait, index);
    leave_if_told();
  }
  __device__ __forceinline__ void leave() const {
    if (lane == 0) ptx::mbarrier_arrive(&shared.finished);
    if (warp < CONSUMER_WARPS) ptx::barrier_arrive<MEETING, CONSUMER_THREADS>();
    ptx::exit_thread();
  }

  __device__ __forceinline__ int sm() const { return blockIdx.x; }
  __device__ __forceinline__ int position() const { return params.position + step; }
  __device__ __forceinline__ u32 epoch() const { return params.epoch + step; }

  // Arrives for the whole warp: what any lane did before is visible to whoever waits for the barrier. One lane can
  // speak for all after they have met; race checkers, which do not follow that, get builds in which each lane does.
  __device__ __forceinline__ void arrive(ptx::Barrier* barrier) const {
    __syncwarp();
    if (G::race_check || lane == 0) ptx::mbarrier_arrive(barrier);
  }

  // Notes when this SM passed a point of the present instruction, in kernels that are built for tracing.
  __device__ __forceinline__ void mark(Mark mark) const {
    if constexpr (G::trace) this->mark(mark, ptx::clock());
  }

  __device__ __forceinline__ void mark(Mark mark, u64 value) const {
    if constexpr (G::trace) {
      if (lane == 0)
        atomicMax(params.trace + (static_cast<i64>(sm()) * params.queue_length + instruction) * isa::MARKS + static_cast<u32>(mark), value);
    }
  }
};

// Waits of a whole warp end in a vote. Lanes that left a loop one by one would run all that follows one by one as well,
// for the compiler can no longer know that they are together.

// It looks at the barrier in one place, and says what it waits for whenever it has looked in vain: that costs nobody
// anything, and the code of a wait is in the kernel some fifty times.
template <class G>
__device__ __forceinline__ void wait_barrier(const Context<G>& context, ptx::Barrier* barrier, u32 parity, Wait wait, u32 index) {
  while (!__all_sync(ALL_LANES, ptx::mbarrier_try_wait(barrier, parity))) {
    context.begin_wait(wait, index);
    context.leave_if_told();
  }
}

// Looks for words until they are there: ask() begins a lane's loads, have_come() looks at what they brought. All loads of a
// look are in flight before the first is looked at. Every lane of the warp calls this.
template <class G, class Ask, class HaveCome>
__device__ __forceinline__ void poll(const Context<G>& context, Wait wait, u32 index, Ask ask, HaveCome have_come) {
  do {
    ask();
    __syncwarp();  // NOTE: without it the compiler had the flag looked at before the loads, and them wait for it
    context.while_polling(wait, index);
  } while (!__all_sync(ALL_LANES, have_come()));
}

// COUNT words a lane, as they are now; those that are not wanted carry `epoch`, and 0. ALIKE neighbours are wanted together: a
// branch for each word would keep the next load waiting.
template <int ALIKE, int COUNT>
__device__ __forceinline__ void look_at_words(const u64* const (&word)[COUNT], const bool (&wanted)[COUNT], u32 epoch, u64 (&w)[COUNT]) {
#pragma unroll
  for (u64& one : w) one = make_word(0, epoch);
#pragma unroll
  for (int first = 0; first < COUNT; first += ALIKE) {
    if (!wanted[first]) continue;
#pragma unroll
    for (int i = first; i < first + ALIKE; i++) w[i] = ptx::load_relaxed_gpu(word[i]);
  }
}

// Whether this lane's words carry `epoch`.
template <int COUNT>
__device__ __forceinline__ bool are_there(const u64 (&w)[COUNT], u32 epoch, u32 (&payload)[COUNT]) {
  bool ready = true;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    ready &= word_epoch(w[i]) == epoch;
    payload[i] = word_payload(w[i]);
  }
  return ready;
}

// COUNT words a lane, polled until all that are `wanted` carry `epoch`; the payload of an unwanted one is 0. Every
// lane of the warp calls this.
template <int COUNT, class G>
__device__ __forceinline__ void wait_words(const Context<G>& context, const u64* const (&word)[COUNT], bool wanted, u32 epoch, Wait wait, u32 index,
                                           u32 (&payload)[COUNT]) {
  bool all_alike[COUNT];
#pragma unroll
  for (bool& one : all_alike) one = wanted;
  u64 w[COUNT];
  poll(context, wait, index, [&] { look_at_words<COUNT>(word, all_alike, epoch, w); }, [&] { return are_there(w, epoch, payload); });
}

// The same with something to be done while the first look is on its way; ALIKE neighbours are wanted together.
//
// NOTE: in a loop with the other looks, behind a condition, registers that meanwhile() fills would be held from one
// instruction to the next.
template <int ALIKE, int COUNT, class G, class Meanwhile>
__device__ __forceinline__ void wait_words(const Context<G>& context, const u64* const (&word)[COUNT], const bool (&wanted)[COUNT], u32 epoch,
                                           Wait wait, u32 index, u32 (&payload)[COUNT], Meanwhile meanwhile) {
  u64 w[COUNT];
  look_at_words<ALIKE>(word, wanted, epoch, w);
  meanwhile();
  while (true) {
    context.while_polling(wait, index);
    if (__all_sync(ALL_LANES, are_there(w, epoch, payload))) return;
    look_at_words<ALIKE>(word, wanted, epoch, w);
  }
}

}  // namespace jitmk::vm
