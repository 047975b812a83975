// A query, key or value head on one warp: how its dims are dealt to lanes, its norm and its rotation.
#pragma once
#include "jitmk/tile/attention.cuh"
#include "jitmk/vm/moments.cuh"

namespace jitmk::vm {

// A lane takes quads of dims, each two words of two. The first ROTARY dims are dealt so that a quad holds what RoPE rotates
// together: dims (2i, 2i + 1) and (2i, 2i + 1) + ROTARY / 2. The rest is dealt in the same way.
template <int D, int ROTARY>
struct HeadQuads {
  static constexpr int DIMS = D, QUADS = D / 4, ROTATED = ROTARY / 4, PER_LANE = (QUADS + WARP_LANES - 1) / WARP_LANES;
  static_assert(D % 4 == 0 && (PER_LANE == 1 || QUADS % WARP_LANES == 0), "unsupported head_dim");
  static_assert(ROTARY % 4 == 0 && ROTARY <= D, "rotary_dim must be a multiple of 4 and no more than head_dim");

  // The two words of a quad, counted within the head.
  __device__ __forceinline__ static int low(int quad) {
    if constexpr (ROTATED == QUADS) return quad;
    return quad < ROTATED ? quad : quad + ROTATED;
  }
  __device__ __forceinline__ static int high(int quad) {
    if constexpr (ROTATED == QUADS) return quad + QUADS;
    return quad + (quad < ROTATED ? ROTATED : QUADS);
  }
};

// Two words of a head, in bf16.
struct HeadQuad {
  u32 low, high;

  __device__ __forceinline__ float4 values() const { return unpack_bf16(make_uint2(low, high)); }
};

__device__ __forceinline__ HeadQuad pack_quad(float4 x) {
  const uint2 packed = pack_bf16(x);
  return {packed.x, packed.y};
}

// Where a position of a key/value head is in the cache: the tile that holds it.
template <int D>
__device__ __forceinline__ u16* tile_of(const Params& p, int layer, int kv_head, int position) {
  constexpr int TILE_BYTES = tile::TILE_POSITIONS * D * 2 * 2;
  return reinterpret_cast<u16*>(p.kv + layer * p.kv_layer_stride + kv_head * p.kv_head_stride +
                                static_cast<i64>(position / tile::TILE_POSITIONS) * TILE_BYTES);
}

// Stores a quad of a key in the tile of its position.
template <class Quads>
__device__ __forceinline__ void store_key(u16* to, int slot, int quad, HeadQuad x) {
  *reinterpret_cast<u32*>(to + tile::key_offset<Quads::DIMS>(slot, 2 * Quads::low(quad))) = x.low;
  *reinterpret_cast<u32*>(to + tile::key_offset<Quads::DIMS>(slot, 2 * Quads::high(quad))) = x.high;
}

// The same of a value, whose neighbouring dims do not lie side by side.
template <class Quads>
__device__ __forceinline__ void store_value(u16* to, int slot, int quad, HeadQuad x) {
  const int low = 2 * Quads::low(quad), high = 2 * Quads::high(quad);
  to[tile::value_offset<Quads::DIMS>(slot, low)] = static_cast<u16>(x.low);
  to[tile::value_offset<Quads::DIMS>(slot, low + 1)] = static_cast<u16>(x.low >> 16);
  to[tile::value_offset<Quads::DIMS>(slot, high)] = static_cast<u16>(x.high);
  to[tile::value_offset<Quads::DIMS>(slot, high + 1)] = static_cast<u16>(x.high >> 16);
}

// Stores a quad of a key or a value in the tile of its position.
template <class Quads>
__device__ __forceinline__ void store_quad(bool is_key, u16* to, int slot, int quad, HeadQuad x) {
  if (is_key)
    store_key<Quads>(to, slot, quad, x);
  else
    store_value<Quads>(to, slot, quad, x);
}

// Fetches this lane's quads of a head; those that it has not are zeros. The whole warp calls this.
template <class Quads, class G>
__device__ __forceinline__ void fetch_head(const Context<G>& context, const u64* head, Wait wait, u32 index, float4 (&x)[Quads::PER_LANE]) {
  const u64* words[2 * Quads::PER_LANE];
  u32 payload[2 * Quads::PER_LANE];
#pragma unroll
  for (int i = 0; i < Quads::PER_LANE; i++) {
    const int quad = context.lane + i * WARP_LANES;
    words[2 * i] = head + isa::bf16_word(Quads::low(quad));
    words[2 * i + 1] = head + isa::bf16_word(Quads::high(quad));
  }
  wait_words(context, words, context.lane < Quads::QUADS, context.epoch(), wait, index, payload);
#pragma unroll
  for (int i = 0; i < Quads::PER_LANE; i++) x[i] = HeadQuad{payload[2 * i], payload[2 * i + 1]}.values();
}

// Rotates the pairs (x.x, x.z) and (x.y, x.w), each by its angle (RoPE; the half-rotation of GPT-NeoX).
// cos_sin: cos and sin of the first angle, then of the second.
__device__ __forceinline__ float4 rotate(float4 x, float4 cos_sin) {
  const float c0 = cos_sin.x, s0 = cos_sin.y, c1 = cos_sin.z, s1 = cos_sin.w;
  return make_float4(x.x * c0 - x.z * s0, x.y * c1 - x.w * s1, x.z * c0 + x.x * s0, x.w * c1 + x.y * s1);
}

// The angles of a quad: those of a position, or none where the quad is not rotated. rope: the position's row of the table,
// float2 [ROTARY / 2], or null in a layer that does not rotate.
template <class Quads>
__device__ __forceinline__ float4 angles(const float2* rope, int quad) {
  return rope != nullptr && quad < Quads::ROTATED ? reinterpret_cast<const float4*>(rope)[quad] : make_float4(1, 0, 1, 0);
}

// A norm's weight at a quad; zeros where there is none.
template <class Quads>
__device__ __forceinline__ float4 quad_weight(const float* weight, int quad) {
  if (quad >= Quads::QUADS) return make_float4(0, 0, 0, 0);
  const auto* pairs = reinterpret_cast<const float2*>(weight);
  const float2 low = pairs[Quads::low(quad)], high = pairs[Quads::high(quad)];
  return make_float4(low.x, low.y, high.x, high.y);
}

// The norm of a head of which each lane has the quads lane, lane + 32, ... The whole warp calls this.
template <NormKind KIND, class Quads>
__device__ __forceinline__ void normalise_head(float4 (&x)[Quads::PER_LANE], const float4 (&weight)[Quads::PER_LANE], float eps, int lane) {
  constexpr float COUNT = 4 * Quads::QUADS;
  const Moments m =
      warp_moments<KIND, Quads::PER_LANE>(COUNT, [&x](int i) { return x[i]; }, [lane](int i) { return lane + i * WARP_LANES < Quads::QUADS; });
  const Normaliser norm = normaliser(m.mean, m.squares, COUNT, eps);
#pragma unroll
  for (int i = 0; i < Quads::PER_LANE; i++) x[i] = multiply(norm(x[i]), weight[i]);
}

}  // namespace jitmk::vm
