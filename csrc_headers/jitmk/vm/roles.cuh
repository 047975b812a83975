// The three roles of a CTA. Each walks the same queue; they meet only at barriers in shared memory.
#pragma once
#include "jitmk/ptx/bulk_copy.cuh"
#include "jitmk/vm/shared.cuh"

namespace jitmk::vm {

// Waits until every chunk that was asked for has landed: bulk copies must not reach a CTA that is gone. By value, so
// that the loader's own cursors stay in registers.
template <int RING_CHUNKS>
__device__ __noinline__ void drain_ring(ptx::Barrier* chunk_full, Cursor<RING_CHUNKS> next, int issued) {
#pragma unroll 1
  for (int i = 0; i < RING_CHUNKS && i < issued; i++) {
    next.parity ^= next.slot == 0;
    next.slot = next.slot == 0 ? RING_CHUNKS - 1 : next.slot - 1;
    while (!ptx::mbarrier_try_wait(&chunk_full[next.slot], next.parity)) {
    }
  }
}

// Streams chunks into the ring, ahead of everyone. It never waits for activations. The whole warp walks and waits
// together, so that it also leaves together; one lane talks to the copy engine.
template <class G>
class Loader {
 public:
  using Shared = typename G::Shared;
  Context<G> context;

  __device__ Loader(const Context<G>& c, unsigned char* base)
      : context(c),
        ring_(Shared::ring(base)),
        policy_(ptx::evict_first_policy()),
        window_(min(c.params.window, Shared::MAX_WINDOW)),
        window_ahead_(min(c.params.window_ahead, Shared::MAX_WINDOW)) {}

  // more: chunks of the same instruction that follow. readers: consumer warps that will hand the chunk back; for the
  // others, who have no business with it, the loader does so in advance. wider: by how much the window is.
  __device__ __forceinline__ void load(const unsigned char* from, int bytes, int more, int readers = CONSUMER_WARPS, int wider = 0) {
    Shared& s = context.shared;
    // A fresh barrier's "previous" phase counts as complete, so the first round does not wait.
    const u64 before = G::trace ? ptx::clock() : 0;
    wait(&s.chunk_empty[next_.slot], next_.parity ^ 1, Wait::RING_EMPTY, next_.slot);
    if constexpr (G::trace) stalled_ += ptx::clock() - before;
    // Throttle: a load in flight is a load that the small latency-bound reads queue behind, and one that runs far ahead
    // takes bandwidth from SMs that are behind. Is the slot half a ring on free? Then the consumers keep up.
    const Cursor<Shared::RING_CHUNKS> half = next_.ahead(Shared::RING_CHUNKS / 2);
    const bool keep_up = __all_sync(ALL_LANES, ptx::mbarrier_test_wait(&s.chunk_empty[half.slot], half.parity ^ 1));
    // In the middle of a long instruction nobody waits for words.
    const int window = min(Shared::MAX_WINDOW, wider + (keep_up ? window_ + (more >= Shared::RING_CHUNKS) : window_ahead_));
    while (issued_ - landed_ >= window) {
      // What was asked for lands, so nobody need leave here. NOTE: with an exit in this loop the compiler could not know, of
      // any role, that lanes are together, and wrote each vote and shuffle twice: a quarter of the kernel.
      wait<false>(&s.chunk_full[oldest_.slot], oldest_.parity, Wait::RING_FULL, oldest_.slot);
      oldest_.advance();
      landed_++;
    }
    if (context.lane == 0) {
      ptx::mbarrier_arrive_expect(&s.chunk_full[next_.slot], bytes);
      ptx::bulk_load(ring_ + next_.slot * G::chunk_bytes, from, bytes, &s.chunk_full[next_.slot], policy_);
      if (readers < CONSUMER_WARPS) ptx::mbarrier_arrive(&s.chunk_empty[next_.slot], (CONSUMER_WARPS - readers) * Shared::WARP_ARRIVALS);
    }
    __syncwarp();
    next_.advance();
    issued_++;
  }

  // An earlier step of this launch appended to this part of the cache: acquire it before a bulk copy reads it. The
  // present step's append may be there already.
  __device__ __forceinline__ void acquire_kv(const u32* flag, u32 epoch) {
    context.begin_wait(Wait::KV_READY, 0);
    while (!__all_sync(ALL_LANES, static_cast<int>(ptx::load_acquire_gpu(flag) - epoch) >= 0)) leave_if_told();
    ptx::fence_proxy_async_global();
  }

  // Notes how long the ring was full during the present instruction, and when its last chunk was asked for.
  __device__ __forceinline__ void mark() {
    context.mark(Mark::LOADED);
    context.mark(Mark::STALL, stalled_);
    stalled_ = 0;
  }

  __device__ __forceinline__ void drain() { drain_ring(context.shared.chunk_full, next_, issued_); }

 private:
  __device__ __forceinline__ void leave_if_told() {
    if (!context.told_to_leave()) return;
    drain();
    if (context.lane == 0) ptx::mbarrier_arrive(&context.shared.finished);
    ptx::exit_thread();
  }

  template <bool MAY_LEAVE = true>
  __device__ __forceinline__ void wait(ptx::Barrier* barrier, u32 parity, Wait what, u32 index) {
    while (!__all_sync(ALL_LANES, ptx::mbarrier_try_wait(barrier, parity))) {
      context.begin_wait(what, index);
      if constexpr (MAY_LEAVE) leave_if_told();
    }
  }

  unsigned char* ring_;
  u64 policy_;
  int window_, window_ahead_;
  Cursor<Shared::RING_CHUNKS> next_, oldest_;  // oldest_: the first that is not known to have landed
  int issued_ = 0, landed_ = 0;
  u64 stalled_ = 0;
};

// A consumer warp: turns chunks into partial sums.
template <class G>
class Consumer {
 public:
  using Shared = typename G::Shared;
  Context<G> context;
  unsigned char* slice;  // this warp's

  __device__ Consumer(const Context<G>& c, unsigned char* base)
      : context(c),
        slice(Shared::slices(base) + c.warp * G::slice_bytes),
        ring_(Shared::ring(base)),
        partials_(
            reinterpret_cast<unsigned char*>(c.lane == 1 ? &c.shared.partial[0].square_sum[c.warp] : &c.shared.partial[0].row[c.warp][c.lane / 4])) {}

  // The next chunk of the ring, once it has landed.
  __device__ __forceinline__ const unsigned char* acquire_chunk() {
    wait_barrier(context, &context.shared.chunk_full[chunk_.slot], chunk_.parity, Wait::RING_FULL, chunk_.slot);
    return ring_ + chunk_.slot * G::chunk_bytes;
  }

  // Hands the slot back to the loader.
  //
  // NOTE: the fence is not decoration. The arrive alone orders the reads before it with ordinary accesses, not with the
  // copy engine: loads whose results nobody needs yet were still under way when the next copy landed in the slot (on an
  // H200 one unit in some hundred steps came out wrong, and more with a wider window). It costs half a percent.
  __device__ __forceinline__ void release_chunk() {
    ptx::fence_proxy_async_shared();
    context.arrive(&context.shared.chunk_empty[chunk_.slot]);
    chunk_.advance();
  }

  // The same in two parts: takes the chunk from here, which goes back later, and several of them behind one fence.
  __device__ __forceinline__ int keep_chunk() {
    const int slot = chunk_.slot;
    chunk_.advance();
    return slot;
  }
  template <int COUNT>
  __device__ __forceinline__ void release_kept(const int (&slots)[COUNT], const bool (&kept)[COUNT]) {
    ptx::fence_proxy_async_shared();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (kept[i] && (G::race_check || context.lane == 0)) ptx::mbarrier_arrive(&context.shared.chunk_empty[slots[i]]);
    __syncwarp();
  }

  // The next COUNT chunks, of which those that are `wanted(i)` come first: waits for them, hands each to read(i, chunk), and
  // then all of them back to the loader, with one fence.
  template <int COUNT, class Wanted, class Read>
  __device__ __forceinline__ void read_chunks(Wanted wanted, Read read) {
    static_assert(COUNT <= Shared::RING_CHUNKS, "the ring cannot hold so many chunks at once");
    bool landed = true;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const Cursor<Shared::RING_CHUNKS> at = chunk_.ahead(i);
      if (wanted(i)) landed &= ptx::mbarrier_try_wait(&context.shared.chunk_full[at.slot], at.parity);
    }
    if (!__all_sync(ALL_LANES, landed)) {
#pragma unroll 1
      for (int i = 0; i < COUNT && wanted(i); i++) {
        const Cursor<Shared::RING_CHUNKS> at = chunk_.ahead(i);
        wait_barrier(context, &context.shared.chunk_full[at.slot], at.parity, Wait::RING_FULL, at.slot);
      }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (wanted(i)) read(i, static_cast<const unsigned char*>(ring_ + chunk_.ahead(i).slot * G::chunk_bytes));
    ptx::fence_proxy_async_shared();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (!wanted(i)) continue;
      if (G::race_check || context.lane == 0) ptx::mbarrier_arrive(&context.shared.chunk_empty[chunk_.slot]);
      chunk_.advance();
    }
  }

  __device__ __forceinline__ const unsigned char* ring() const { return ring_; }

  // Goes on by chunks that this warp does not read. HELD: the loader counts on it to hand them back all the same.
  template <bool HELD>
  __device__ __forceinline__ void skip_chunks(int count) {
    if constexpr (HELD) {
      for (int i = 0; i < count; i++) {
        acquire_chunk();
        context.arrive(&context.shared.chunk_empty[chunk_.slot]);
        chunk_.advance();
      }
    } else {
      chunk_.advance(count);
    }
  }

  // The same by a few chunks, no more than the ring holds, at less expense.
  __device__ __forceinline__ void pass_chunks(int count) { chunk_ = chunk_.ahead(count); }

  // Makes sure of places for the partial sums of `units` more units, PARTIAL_BATCH at most. The storer frees them in order.
  __device__ __forceinline__ void reserve_partials(int units) {
    if (free_partials_ >= units) return;
#pragma unroll
    for (int i = G::race_check ? 0 : PARTIAL_BATCH - 1; i < PARTIAL_BATCH; i++) {
      const Cursor<PARTIAL_SLOTS> at = partial_.ahead(i);
      wait_barrier(context, &context.shared.partial_empty[at.slot], at.parity ^ 1, Wait::PARTIAL_EMPTY, at.slot);
    }
    free_partials_ = PARTIAL_BATCH;
  }

  // This warp's share of the next unit, in a place that is reserved: each row from the first of its four lanes, the sum of
  // squares from lane 1.
  __device__ __forceinline__ void report_partial(float row, float square_sum) {
    if (context.lane % 4 == 0 || context.lane == 1)
      *reinterpret_cast<float*>(partials_ + partial_.slot * sizeof(UnitPartials)) = context.lane == 1 ? square_sum : row;
    report_partial();
  }

  __device__ __forceinline__ void report_partial() {
    context.arrive(&context.shared.partial_full[partial_.slot]);
    partial_.advance();
    free_partials_--;
  }

  // Tells the storer that this warp has done its part of an append to the cache.
  __device__ __forceinline__ void report_append() {
    reserve_partials(1);
    report_partial();
  }

  // Waits for the other consumer warps; what they wrote to shared memory before is visible after.
  //
  // The barrier has no deadline, but whoever leaves counts as having come, so that those who wait go on. Before they can wait
  // for somebody who will not come they must look at the flag again, for it says by then that they have to leave, too. `told`:
  // what they saw there since the last meeting.
  __device__ __forceinline__ void meet(u32 told) {
    if (__any_sync(ALL_LANES, told != 0)) context.leave();
    meet_after_poll();
  }
  __device__ __forceinline__ void meet() { meet(context.told()); }
  // The same for warps that have all looked for words since the last meeting, and at the flag meanwhile.
  __device__ __forceinline__ void meet_after_poll() {
    context.begin_wait(Wait::CONSUMERS, 0);
    ptx::barrier_sync<MEETING, CONSUMER_THREADS>();
    meetings_ ^= 1;
  }

  // 0 or 1 by turns, between two meetings.
  __device__ __forceinline__ u32 meeting() const { return meetings_; }

  // Lets time pass, if it has not since `begun`, before a matvec behind own units looks for its input. A look in vain takes as
  // long as one that is not, and one of everybody holds up those who publish.
  __device__ __forceinline__ void await_first_look(u64 begun) const {
#pragma unroll 1
    while (__any_sync(ALL_LANES, static_cast<int>(ptx::clock() - begun) < context.params.first_look)) {
    }
  }

  // Waits for the storer of this SM to end its step, for it applies the sampling filters in shared memory that is the
  // consumers' (`filter_bins`).
  __device__ __forceinline__ void await_filters() { wait_barrier(context, &context.shared.filtered, context.step & 1, Wait::FILTERED, 0); }

  // The time of the last consumer warp that passes counts.
  __device__ __forceinline__ void mark(Mark mark) const { context.mark(mark, ptx::clock()); }

  __device__ __forceinline__ int thread() const { return context.warp * WARP_LANES + context.lane; }

 private:
  unsigned char* ring_;
  unsigned char* partials_;  // where this lane's share of a unit goes, in the first slot
  int free_partials_ = 0;    // slots that are known to be free
  Cursor<Shared::RING_CHUNKS> chunk_;
  Cursor<PARTIAL_SLOTS> partial_;
  u32 meetings_ = 0;
};

// The storer warp: adds the warps' partial sums, applies the epilogue, publishes the words.
template <class G>
class Storer {
 public:
  using Shared = typename G::Shared;
  Context<G> context;
  int token = 0;  // this step's

  __device__ explicit Storer(const Context<G>& c) : context(c) {}

  // Waits until the next unit's partial sums are there.
  __device__ __forceinline__ void acquire_partials() const {
    wait_barrier(context, &context.shared.partial_full[partial_.slot], partial_.parity, Wait::PARTIAL_FULL, partial_.slot);
  }

  // Whether by now the unit `ahead` behind the next one has its partial sums. Then all before it have theirs, for warps
  // report units in order; race checkers, which do not follow that, get builds that look at each.
  //
  // NOTE: a look at a barrier orders the loads behind it only once its answer has been used. Loads that did not depend on
  // it were carried out before it, and units of an earlier step came out of a slot that was said to be full.
  __device__ __forceinline__ bool has_partials(int ahead) const {
    bool ready = true;
    for (int i = G::race_check ? 0 : ahead; i <= ahead; i++) {
      const Cursor<PARTIAL_SLOTS> at = partial_.ahead(i);
      ready &= __all_sync(ALL_LANES, ptx::mbarrier_test_wait(&context.shared.partial_full[at.slot], at.parity)) != 0;
    }
    return ready;
  }

  // Of the unit `ahead` behind the next one.
  __device__ __forceinline__ const UnitPartials& partials(int ahead) const { return context.shared.partial[partial_.ahead(ahead).slot]; }

  __device__ __forceinline__ void release_partials() {
    context.arrive(&context.shared.partial_empty[partial_.slot]);
    partial_.advance();
  }

  // The consumers have appended this step's key and value, and arrive as if with a unit: the next step's loaders are
  // told. The fences are the storer's, who has nothing else to do now: they do not hold up the words that are waited for.
  __device__ __forceinline__ void release_kv(u32* flag) {
    acquire_partials();
    if (context.lane == 0) {
      ptx::fence_proxy_async_global();
      ptx::fence_gpu();
      ptx::store_relaxed_gpu(flag, context.epoch());
    }
    release_partials();
  }

 private:
  Cursor<PARTIAL_SLOTS> partial_;
};

}  // namespace jitmk::vm
