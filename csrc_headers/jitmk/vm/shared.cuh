// Shared memory of a CTA: the ring, the consumers' slices of the input vector, and what the roles exchange.
#pragma once
#include "jitmk/vm/context.cuh"

namespace jitmk::vm {

constexpr int PARTIAL_SLOTS = 8;  // units whose partial sums may wait for the storer
constexpr int PARTIAL_BATCH = 4;  // of them, taken by a consumer at once
constexpr int UNIT_ROWS = isa::UNIT_ROWS;
constexpr int FILTER_SHARED_BYTES = isa::FILTER_BINS * WARP_LANES * 8;

// All warps' shares of a unit: 8 partial dot products each, and of the input's sum of squares. The storer reads the rows of
// four units at once: their size, 8 words more than a multiple of all banks, keeps these apart.
struct UnitPartials {
  float row[CONSUMER_WARPS][UNIT_ROWS];
  float square_sum[CONSUMER_WARPS];
};

// The running softmax of one query head on one warp: what was taken from its scores, in units of log2, and the normaliser.
struct SoftmaxState {
  float reference, sum;
};

// How many values a warp has of a vector that a norm is taken of, their mean, and the sum of their squared distances from it.
struct Moments {
  float count, mean, squares;
};

// Those of all warps.
struct alignas(16) WarpMoments {
  float count[CONSUMER_WARPS], mean[CONSUMER_WARPS], squares[CONSUMER_WARPS];
};

template <class G>
struct AttentionShared {
  static constexpr int QUERY_STRIDE = G::head_dim + 8;  // bf16; the padding keeps fragment loads free of bank conflicts
  u16 query[G::max_group * QUERY_STRIDE];
  u16 new_key[G::head_dim];
  u16 new_value[G::head_dim];
  SoftmaxState state[CONSUMER_WARPS][G::max_group];
  float new_score[G::max_group];
};

// All warps' slices of a matvec's input, as B operands (vm/input.cuh), and each lane's share of the sum of squares.
struct alignas(16) SharedInput {
  uint2 x[CONSUMER_WARPS][WARP_LANES];
  float squares[CONSUMER_WARPS * WARP_LANES];
};

// What warps that have units of their own need (own_units.cuh).
template <bool PRESENT>
struct SharedInputs {};
template <>
struct SharedInputs<true> {
  SharedInput input[2];
};

template <class G>
struct FixedShared {
  ptx::Barrier partial_full[PARTIAL_SLOTS], partial_empty[PARTIAL_SLOTS];
  ptx::Barrier finished;  // all warps have done all steps
  ptx::Barrier filtered;  // the storer has ended a step with sampling filters
  u32 leave;              // the generation has stopped or the launch is given up: who waits need wait no more
  WarpRecord record[WORKING_WARPS];
  alignas(16) UnitPartials partial[PARTIAL_SLOTS];
  alignas(16) AttentionShared<G> attention;
  WarpMoments moments[2];  // see exchange_moments
  SharedInputs<G::own_units> inputs;

  // Where the storer counts logits in bins: over the partial sums and what attention exchanges. When it has the last
  // partial sums of the LM head, the consumers have read and written all that they will before they pass `filtered`.
  __device__ __forceinline__ u64* filter_bins() {
    static_assert(sizeof(partial) + sizeof(attention) >= FILTER_SHARED_BYTES, "no room for the bins of the sampling filters");
    return reinterpret_cast<u64*>(partial);
  }
};

// G gives shared_bytes (the whole of it, dynamic), slice_bytes (of one consumer warp), chunk_bytes, head_dim, max_group, and whether
// consumer warps have units of their own (own_units).
template <class G>
struct SharedLayout : FixedShared<G> {
  static constexpr int SLICES_BYTES = CONSUMER_WARPS * G::slice_bytes;
  static constexpr int RING_CHUNKS = (G::shared_bytes - SLICES_BYTES - static_cast<int>(sizeof(FixedShared<G>)) - 64) /
                                     (G::chunk_bytes + 2 * static_cast<int>(sizeof(ptx::Barrier)));
  // Loads in flight: half a ring, or four and more that leave a chunk for each consumer warp (see TileChunks).
  static constexpr int BESIDE_WARPS = RING_CHUNKS - CONSUMER_WARPS;
  static constexpr int MAX_WINDOW = BESIDE_WARPS >= 4 && BESIDE_WARPS < RING_CHUNKS / 2 ? BESIDE_WARPS : RING_CHUNKS / 2;
  static constexpr int WARP_ARRIVALS = G::race_check ? WARP_LANES : 1;  // see Context::arrive
  static_assert(RING_CHUNKS >= 2, "shared memory has no room for a ring of two chunks");
  static_assert(G::slice_bytes % 128 == 0, "slices must keep the ring aligned");

  ptx::Barrier chunk_full[RING_CHUNKS], chunk_empty[RING_CHUNKS];

  __device__ __forceinline__ static unsigned char* ring(unsigned char* base) { return base; }
  __device__ __forceinline__ static unsigned char* slices(unsigned char* base) { return base + RING_CHUNKS * G::chunk_bytes; }
  __device__ __forceinline__ static SharedLayout& fixed(unsigned char* base) { return *reinterpret_cast<SharedLayout*>(slices(base) + SLICES_BYTES); }

  __device__ void initialise() {
    static_assert(RING_CHUNKS * G::chunk_bytes + SLICES_BYTES + sizeof(SharedLayout) <= G::shared_bytes, "shared memory is overcommitted");
    for (int i = 0; i < RING_CHUNKS; i++) {
      ptx::mbarrier_init(&chunk_full[i], 1);
      ptx::mbarrier_init(&chunk_empty[i], CONSUMER_WARPS * WARP_ARRIVALS);
    }
    for (int i = 0; i < PARTIAL_SLOTS; i++) {
      ptx::mbarrier_init(&this->partial_full[i], CONSUMER_WARPS * WARP_ARRIVALS);
      ptx::mbarrier_init(&this->partial_empty[i], WARP_ARRIVALS);
    }
    ptx::mbarrier_init(&this->finished, WORKING_WARPS);
    ptx::mbarrier_init(&this->filtered, WARP_ARRIVALS);
    this->leave = 0;
    for (int w = 0; w < WORKING_WARPS; w++) this->record[w] = {0, static_cast<u32>(Wait::NOTHING) << 24};
    ptx::fence_proxy_async_shared();
  }
};

// A place in a cyclic buffer of N slots, with the parity of the current round.
template <int N>
struct Cursor {
  int slot = 0;
  u32 parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == N) slot = 0, parity ^= 1;
  }
  __device__ __forceinline__ void advance(int slots) {
    slot += slots;
    parity ^= slot / N & 1;
    slot %= N;
  }
  // Up to N slots.
  __device__ __forceinline__ Cursor ahead(int slots) const {
    Cursor at = *this;
    at.slot += slots;
    if (at.slot >= N) at.slot -= N, at.parity ^= 1;
    return at;
  }
};

}  // namespace jitmk::vm
