// The dot products of a matvec: a consumer warp's part of them, by tensor cores.
#pragma once
#include "jitmk/ptx/mma.cuh"
#include "jitmk/vm/matvec_shape.cuh"

namespace jitmk::vm {

// This warp's and lane's part of chunk c of a unit. Blocks that it misses are the unit's last one: weights, and no other
// bits, for their input is zeros.
template <class M, class G>
__device__ __forceinline__ void read_chunk(const Consumer<G>& consumer, int c, const unsigned char* chunk, uint4* w) {
  const int blocks = M::chunk_blocks(c), first = consumer.context.warp * blocks;
  const auto* weights = reinterpret_cast<const uint4*>(chunk) + consumer.context.lane;
#pragma unroll
  for (int b = 0; b < blocks; b++) {
    const bool every_warp = M::CHUNKS > 1 || (CONSUMER_WARPS - 1) * blocks + b < M::UNIT_BLOCKS;  // has this block
    w[b] = weights[(every_warp ? first + b : min(first + b, M::UNIT_BLOCKS - 1)) * WARP_LANES];
  }
}

// This warp's dot products of a unit. A block of weights is all of A: columns 0 to 3 of every 8 in its upper rows, below them
// columns 4 to 7 of the same 8 rows. B has the input of four blocks side by side, two columns for each, and every block of
// the four has an accumulator of its own: of block b % 4 the products of row g are d[0] and d[3] of lane 4 g + b % 4. The
// rest is of no use, but takes no instruction: one product a block, and no lane holds a value of the input twice.
template <class M>
struct Dots {
  float chain[CHAINS][4];

  __device__ __forceinline__ void add(int block, uint4 w, uint2 x) { ptx::mma_m16n8k16(chain[block % CHAINS], w, x.x, x.y); }
  // Of all blocks in turn: an accumulator's first product is added to nothing.
  __device__ __forceinline__ void multiply(int block, uint4 w, uint2 x) {
    if (block < CHAINS)
      ptx::mma_m16n8k16_first(chain[block], w, x.x, x.y);
    else
      add(block, w, x);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float (&c)[4] : chain) c[0] = c[1] = c[2] = c[3] = 0;
  }

  // This lane's share of row lane / 4, which four lanes have.
  __device__ __forceinline__ float share(int lane) const {
    float sums[CHAINS];
#pragma unroll
    for (int c = 0; c < CHAINS; c++) sums[c] = c < M::BLOCKS ? chain[c][0] + chain[c][3] : 0.0f;
    const float low = lane & 1 ? sums[1] : sums[0], high = lane & 1 ? sums[3] : sums[2];
    return lane & 2 ? high : low;
  }
};

// The rows of some units, from their lanes' shares. meanwhile(): something to be done behind each shuffle.
template <int UNITS, class Meanwhile>
__device__ __forceinline__ void add_shares(float (&rows)[UNITS], Meanwhile meanwhile) {
#pragma unroll
  for (int offset = 1; offset <= 2; offset *= 2) {
    float other[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) other[u] = __shfl_xor_sync(ALL_LANES, rows[u], offset);
    meanwhile();
#pragma unroll
    for (int u = 0; u < UNITS; u++) rows[u] += other[u];
  }
}

}  // namespace jitmk::vm
