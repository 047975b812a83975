// Queries, keys and values of many tokens: norms and rotation in place, and the append to the KV cache.
#pragma once
#include "jitmk/prefill/values.cuh"
#include "jitmk/tile/attention.cuh"

namespace jitmk::prefill {

enum class HeadNorm { NONE, RMS, LAYER };

// HEAD_WEIGHTS: whether every head has weights of its own.
template <int HEADS_, int KV_HEADS_, int DIM_, HeadNorm NORM_, bool HEAD_WEIGHTS_>
struct HeadsShape {
  static constexpr int HEADS = HEADS_, KV_HEADS = KV_HEADS_, DIM = DIM_;
  static constexpr HeadNorm NORM = NORM_;
  static constexpr bool HEAD_WEIGHTS = HEAD_WEIGHTS_;
  static constexpr int ROW = (HEADS + 2 * KV_HEADS) * DIM;
  static constexpr int PAIRS = (DIM / 2 + WARP_LANES - 1) / WARP_LANES;  // of neighbouring dims, a lane
  static_assert(DIM % 16 == 0, "head_dim must be a multiple of 16");
};

// Neighbouring dims.
__device__ __forceinline__ float2 load_pair(const u16* head, int dim) {
  const u32 x = *reinterpret_cast<const u32*>(head + dim);
  return make_float2(ptx::low_bf16(x), ptx::high_bf16(x));
}
__device__ __forceinline__ float2 load_pair(const float* p) { return *reinterpret_cast<const float2*>(p); }

// What a head's norm does to two neighbouring dims.
struct HeadNormaliser {
  float mean = 0, scale = 1;
  const float* weight = nullptr;  // null: nothing

  __device__ __forceinline__ float2 operator()(float2 x, int dim) const {
    if (weight == nullptr) return x;
    const float2 w = load_pair(weight + dim);
    return make_float2((x.x - mean) * scale * w.x, (x.y - mean) * scale * w.y);
  }
};

// Computed by a warp over its head, which lies at `head`.
template <class S>
__device__ __forceinline__ HeadNormaliser head_normaliser(const u16* head, const float* weight, float eps, int lane) {
  HeadNormaliser n;
  if constexpr (S::NORM != HeadNorm::NONE) {
    if constexpr (S::NORM == HeadNorm::LAYER) {
      float sum = 0;
      for (int dim = lane * 2; dim < S::DIM; dim += 2 * WARP_LANES) {
        const float2 x = load_pair(head, dim);
        sum += x.x + x.y;
      }
      n.mean = warp_sum(sum) / S::DIM;
    }
    float squares = 0;
    for (int dim = lane * 2; dim < S::DIM; dim += 2 * WARP_LANES) {
      const float2 x = load_pair(head, dim);
      squares += (x.x - n.mean) * (x.x - n.mean) + (x.y - n.mean) * (x.y - n.mean);
    }
    n.scale = 1.0f / sqrtf(warp_sum(squares) / S::DIM + eps);
    n.weight = weight;
  }
  return n;
}

// The new values of dims `dim` and `dim` + 1, which lie on one side of `half`, an even number: pairs (i, i + half) turn by
// the angles of a table's row, the dims behind them stay.
__device__ __forceinline__ float2 turned(const u16* head, int dim, int half, const float* cos, const float* sin, const HeadNormaliser& norm) {
  const float2 x = norm(load_pair(head, dim), dim);
  if (dim >= 2 * half) return x;
  const bool first = dim < half;
  const int other = first ? dim + half : dim - half, column = first ? dim : other;
  const float2 y = norm(load_pair(head, other), other), c = load_pair(cos + column), s = load_pair(sin + column);
  return first ? make_float2(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y) : make_float2(x.x * c.x + y.x * s.x, x.y * c.y + y.y * s.y);
}

// One query or key head of one token. Keys go to the cache as well.
template <class S>
__device__ __forceinline__ void turn_head(const HeadsParams& p, int token, int index, int lane) {
  u16* head = p.qkv + static_cast<i64>(token) * S::ROW + index * S::DIM;
  const bool key = index >= S::HEADS;
  const int of_kind = key ? index - S::HEADS : index;
  const float* weight = (key ? p.k_norm : p.q_norm) + (S::HEAD_WEIGHTS ? of_kind * S::DIM : 0);
  const HeadNormaliser norm = head_normaliser<S>(head, weight, p.eps, lane);
  const float* cos = p.cos + static_cast<i64>(token) * p.half;
  const float* sin = p.sin + static_cast<i64>(token) * p.half;
  u32 turned_pairs[S::PAIRS];
#pragma unroll
  for (int i = 0; i < S::PAIRS; i++) {
    const int dim = (i * WARP_LANES + lane) * 2;
    if (dim >= S::DIM) continue;
    const float2 x = turned(head, dim, p.half, cos, sin, norm);
    turned_pairs[i] = ptx::pack_bf16(x.x, x.y);
  }
  __syncwarp();  // the whole head has been read
  const int position = p.start + token;
  u16* tile =
      p.cache + static_cast<i64>(of_kind) * p.head_stride + static_cast<i64>(position / tile::TILE_POSITIONS) * 2 * tile::TILE_POSITIONS * S::DIM;
#pragma unroll
  for (int i = 0; i < S::PAIRS; i++) {
    const int dim = (i * WARP_LANES + lane) * 2;
    if (dim >= S::DIM) continue;
    *reinterpret_cast<u32*>(head + dim) = turned_pairs[i];
    // Neighbouring dims lie side by side in a tile too.
    if (key) *reinterpret_cast<u32*>(tile + tile::key_offset<S::DIM>(position % tile::TILE_POSITIONS, dim)) = turned_pairs[i];
  }
}

// 16 dims of the values of one head and tile, as far as the tile's positions are among the tokens. A lane has two dims of
// four positions, which lie together in the tile.
template <class S>
__device__ __forceinline__ void append_values(const HeadsParams& p, int tile_index, int kv_head, int dims, int lane) {
  constexpr int POSITIONS = tile::TILE_POSITIONS;
  const int row = lane / 4, quad = lane % 4, first = tile_index * POSITIONS;
  u16* tile = p.cache + static_cast<i64>(kv_head) * p.head_stride + static_cast<i64>(tile_index) * 2 * POSITIONS * S::DIM;
  const u16* values = p.qkv + (S::HEADS + S::KV_HEADS + kv_head) * S::DIM + dims;
  u16 gathered[8];
  int there = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const int token = first + i % 4 / 2 * 8 + quad * 2 + i % 2 - p.start, dim = i / 4 * 8 + row;
    const bool is = token >= 0 && token < p.rows;
    gathered[i] = is ? values[static_cast<i64>(token) * S::ROW + dim] : u16{0};
    there |= is << i;
  }
  u16* to = tile + tile::value_offset<S::DIM>(quad * 2, dims + row);
  if (there == 0xff) {
    uint4 piece;
    piece.x = gathered[0] | static_cast<u32>(gathered[1]) << 16;
    piece.y = gathered[2] | static_cast<u32>(gathered[3]) << 16;
    piece.z = gathered[4] | static_cast<u32>(gathered[5]) << 16;
    piece.w = gathered[6] | static_cast<u32>(gathered[7]) << 16;
    *reinterpret_cast<uint4*>(to) = piece;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (there >> i & 1) to[i] = gathered[i];
}

// Queries and keys first, a head of a token a warp, then values.
template <class S>
__device__ __forceinline__ void finish_heads(const HeadsParams& p, int warp, int warps, int lane) {
  constexpr int TURNED = S::HEADS + S::KV_HEADS, PARTS = S::DIM / 16;
  const int first_tile = p.start / tile::TILE_POSITIONS;
  const int tiles = (p.start + p.rows + tile::TILE_POSITIONS - 1) / tile::TILE_POSITIONS - first_tile;
  const int heads = p.rows * TURNED, items = heads + tiles * S::KV_HEADS * PARTS;
  for (int item = warp; item < items; item += warps) {
    if (item < heads) {
      turn_head<S>(p, item / TURNED, item % TURNED, lane);
    } else {
      const int part = item - heads;
      append_values<S>(p, first_tile + part / (S::KV_HEADS * PARTS), part / PARTS % S::KV_HEADS, part % PARTS * 16, lane);
    }
  }
}

}  // namespace jitmk::prefill
