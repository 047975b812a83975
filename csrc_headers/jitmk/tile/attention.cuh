// One warp's online softmax over tiles of 16 cached positions (Flash-Decoding; FlashAttention-2, arXiv:2307.08691).
//
// scores[8 heads x 16 positions] = Q K^T and output[8 heads x D] += P V, both with the heads as the rows of A. The
// accumulator layout of the first product is the A layout of the second, so probabilities never leave registers.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/ptx/mma.cuh"
#include "jitmk/ptx/special.cuh"

namespace jitmk::tile {

constexpr int TILE_POSITIONS = 16;

// Element offsets within a cached tile (bf16); the twin of KvLayout in Python.
template <int D>
__device__ __forceinline__ int key_offset(int position, int dim) {
  const int block = dim / 32, width = block < D / 32 ? 32 : 16;
  return position / 8 * 8 * D + block * 256 + position % 8 * width + dim % 32;
}
template <int D>
__device__ __forceinline__ int value_offset(int position, int dim) {
  return TILE_POSITIONS * D + dim / 16 * 256 + dim % 8 * 32 + position % 8 / 2 * 8 + dim % 16 / 8 * 4 + position / 8 * 2 + position % 2;
}

// Where the i-th pair of dims of a query lies in shared memory, and of a key that is multiplied with it. Of every 4 pairs
// the middle two change places: a lane's 16 bytes are then the A fragment of two products (see mma_m16n8k16).
template <int D>
__device__ __forceinline__ int fragment_word(int i) {
  return i < D / 32 * 16 ? (i & ~3) | (i & 1) << 1 | (i & 2) >> 1 : i;
}

// Query fragments of up to 8 heads: lane l holds head l / 4.
template <int D>
struct QueryFragment {
  static constexpr int BLOCKS = D / 32;
  static constexpr bool TAIL = D % 32 != 0;
  uint4 block[BLOCKS];
  uint2 tail;

  // row: the lane's dims of the first block, from lane % 4 * 8 on, bf16 in shared memory.
  __device__ __forceinline__ QueryFragment(const u16* row, int lane) {
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) block[b] = *reinterpret_cast<const uint4*>(row + b * 32);
    if constexpr (TAIL) tail = *reinterpret_cast<const uint2*>(row + BLOCKS * 32 - lane % 4 * 4);
  }
};

// The keys of a tile as B operands: lane l has position l / 4 of each half. Read block by block as they are wanted.
template <int D>
struct TileKeys {
  const unsigned char* tile;
  int lane;

  __device__ __forceinline__ uint4 block(int half, int b) const {
    return *reinterpret_cast<const uint4*>(tile + half * 8 * D * 2 + b * 512 + lane * 16);
  }
  __device__ __forceinline__ uint2 tail(int half) const { return *reinterpret_cast<const uint2*>(tile + half * 8 * D * 2 + D / 32 * 512 + lane * 8); }
};

// Puts a key, bf16 [D] in shared memory, in the place of a position of a tile. The whole warp calls this.
template <int D>
__device__ __forceinline__ void put_key(unsigned char* tile, int position, const u16* key, int lane) {
  static_assert(D % 32 == 0, "such keys have blocks of 32 dims only");
  unsigned char* to = tile + key_offset<D>(position, 0) * 2;
  for (int quarter = lane; quarter < D / 8; quarter += WARP_LANES)
    *reinterpret_cast<uint4*>(to + quarter / 4 * 512 + quarter % 4 * 16) = *reinterpret_cast<const uint4*>(key + quarter * 8);
  __syncwarp();
}

// The same in registers.
template <int D>
struct KeyFragment {
  static constexpr int BLOCKS = D / 32;
  static constexpr bool TAIL = D % 32 != 0;
  uint4 blocks[2][BLOCKS];
  uint2 tails[2];

  __device__ __forceinline__ void read(const unsigned char* tile, int lane) {
    const TileKeys<D> keys{tile, lane};
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) blocks[half][b] = keys.block(half, b);
      if constexpr (TAIL) tails[half] = keys.tail(half);
    }
  }

  // Puts another key in the place of a position's. ahead: by how much that is ahead of position lane / 4, which it need not be a
  // position of the tile for. row: the lane's dims of the key's first block, as for QueryFragment.
  __device__ __forceinline__ void replace(int ahead, const u16* row, int lane) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (ahead != half * 8) continue;
#pragma unroll
      for (int b = 0; b < BLOCKS; b++) blocks[half][b] = *reinterpret_cast<const uint4*>(row + b * 32);
      if constexpr (TAIL) tails[half] = *reinterpret_cast<const uint2*>(row + BLOCKS * 32 - lane % 4 * 4);
    }
  }

  __device__ __forceinline__ uint4 block(int half, int b) const { return blocks[half][b]; }
  __device__ __forceinline__ uint2 tail(int half) const { return tails[half]; }
};

// The values of a tile as B operands, two blocks of 8 dims at a time, read one by one as they are wanted.
template <int D>
struct TileValues {
  const unsigned char* from;

  __device__ __forceinline__ TileValues(const unsigned char* tile, int lane) : from(tile + TILE_POSITIONS * D * 2 + lane * 16) {}
  __device__ __forceinline__ uint4 operator[](int pair) const { return *reinterpret_cast<const uint4*>(from + pair * 512); }
};

// The same, in registers.
template <int D>
struct ValueFragment {
  uint4 pair[D / 16];

  __device__ __forceinline__ void read(const unsigned char* tile, int lane) {
    const TileValues<D> values(tile, lane);
#pragma unroll
    for (int i = 0; i < D / 16; i++) pair[i] = values[i];
  }
  __device__ __forceinline__ uint4 operator[](int i) const { return pair[i]; }
};

// Q K^T of a tile: lane l has in [h][i] what its head l / 4 and position 8 h + 2 (l % 4) + i give.
template <int D, class Keys>
__device__ __forceinline__ void multiply_keys(const QueryFragment<D>& query, const Keys& keys, float (&product)[2][2]) {
  // Four chains of products side by side: each product waits for the one before in its chain.
  float low[2][4] = {}, high[2][4] = {};
#pragma unroll
  for (int b = 0; b < QueryFragment<D>::BLOCKS; b++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4 k = keys.block(half, b);
      if (b == 0) {
        ptx::mma_m16n8k16_first(low[half], query.block[b], k.x, k.y);
        ptx::mma_m16n8k16_first(high[half], query.block[b], k.z, k.w);
      } else {
        ptx::mma_m16n8k16(low[half], query.block[b], k.x, k.y);
        ptx::mma_m16n8k16(high[half], query.block[b], k.z, k.w);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if constexpr (QueryFragment<D>::TAIL) ptx::mma_m8n8k16(low[half], query.tail.x, query.tail.y, keys.tail(half).x, keys.tail(half).y);
#pragma unroll
    for (int i = 0; i < 2; i++) product[half][i] = low[half][i] + high[half][i + 2];
  }
}

constexpr float LOWEST_SCORE = -1e30f;  // of any that a maximum is taken with: -inf must not meet -inf
// Scores in units of log2 that are no further from 0 need no maximum taken from them: the sum of a million such exponentials
// fits fp32 and bf16, and so does the least of them.
constexpr float FAR_SCORE = 80.0f;

// The running state of 8 heads on one warp. Lane l holds head l / 4; output[n] its dims 8n + 2q and the next.
template <int D>
struct AttentionAccumulator {
  static_assert(D % 16 == 0, "head_dim must be a multiple of 16");
  float output[D / 8][4];  // the upper half of each fragment belongs to heads 8..15, which do not exist
  float sums[4];           // the product with values that are 1: in [0], the sum of the warp's exponentials
  float reference;         // what is taken from scores before their exponentials: 0, as long as none is far from it

  // Adds some tiles. FIRST: of this accumulator. scores: as multiply_keys leaves products, in units of log2; -inf where a position
  // does not count. far: whether one of this lane's may be far from 0. other_heads: anything, in registers, for heads 8..15 of each
  // fragment; one with constants in it would be put together anew for each product.
  template <bool FIRST, int TILES, class Values>
  __device__ __forceinline__ void add_tiles(float (&scores)[TILES][2][2], bool far, const Values* values, const uint2* other_heads) {
    float p[TILES][2][2];
    take_exponentials(scores, p);
    if (FIRST) reference = 0;
    // Nearly always these will do: they are on their way while it is found out.
    if (__any_sync(ALL_LANES, far || reference != 0)) {
      refer_to_maximum<FIRST>(scores);
      take_exponentials(scores, p);
    }
    constexpr u32 ONES = 0x3f803f80;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      const uint4 fragment =
          make_uint4(ptx::pack_bf16(p[t][0][0], p[t][0][1]), other_heads[t].x, ptx::pack_bf16(p[t][1][0], p[t][1][1]), other_heads[t].y);
      const bool first = FIRST && t == 0;
      multiply(first, sums, fragment, ONES, ONES);
#pragma unroll
      for (int pair = 0; pair < D / 16; pair++) {
        const uint4 v = values[t][pair];
        multiply(first, output[2 * pair], fragment, v.x, v.y);
        multiply(first, output[2 * pair + 1], fragment, v.z, v.w);
      }
    }
  }

 private:
  template <int TILES>
  __device__ __forceinline__ static void take_exponentials(const float (&scores)[TILES][2][2], float (&p)[TILES][2][2]) {
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        p[t][i / 2][i % 2] = ptx::exp2_approx(scores[t][i / 2][i % 2]);
        ptx::settle(p[t][i / 2][i % 2]);
      }
  }

  __device__ __forceinline__ static void multiply(bool first, float (&d)[4], uint4 a, u32 b0, u32 b1) {
    if (first)
      ptx::mma_m16n8k16_first(d, a, b0, b1);
    else
      ptx::mma_m16n8k16(d, a, b0, b1);
  }

  // The online softmax: from here on scores are taken relative to the largest so far, and so are these.
  template <bool FIRST, int TILES>
  __device__ __forceinline__ void refer_to_maximum(float (&scores)[TILES][2][2]) {
    const bool begun = !FIRST && sums[0] > 0;
    float next = begun ? reference : LOWEST_SCORE;
#pragma unroll
    for (int t = 0; t < TILES; t++) next = fmaxf(next, fmaxf(fmaxf(scores[t][0][0], scores[t][0][1]), fmaxf(scores[t][1][0], scores[t][1][1])));
    next = fmaxf(next, __shfl_xor_sync(ALL_LANES, next, 1));
    next = fmaxf(next, __shfl_xor_sync(ALL_LANES, next, 2));
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int half = 0; half < 2; half++) scores[t][half][0] -= next, scores[t][half][1] -= next;
    if constexpr (!FIRST) {
      const float correction = begun ? ptx::exp2_approx(reference - next) : 0.0f;
#pragma unroll
      for (float (&of_dims)[4] : output) of_dims[0] *= correction, of_dims[1] *= correction;
      sums[0] *= correction;
    }
    reference = next;
  }
};

}  // namespace jitmk::tile
