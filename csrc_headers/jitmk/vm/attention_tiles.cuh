// What ATTENTION works through: the tiles of a unit, how they reach the ring, and what a warp does with its own.
#pragma once
#include "jitmk/tile/attention.cuh"
#include "jitmk/vm/activation.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

// Config is rendered from AttentionConfig.
template <class Config>
struct Attention : Config {
  using Config::GROUP, Config::HEADS, Config::KV_HEADS;
  static constexpr int D = Config::HEAD_DIM;
  static constexpr int RATIO = HEADS / KV_HEADS, GROUPS_PER_KV_HEAD = (RATIO + GROUP - 1) / GROUP;
  static constexpr int TILE_BYTES = tile::TILE_POSITIONS * D * 2 * 2;
  static constexpr int OUTPUT_WORDS = HEADS * D / 2;  // of a split
  // A warp's sums lie in its slice as fp32 [heads][D], each head's groups of 8 dims in an order of its own: in the same one,
  // stores of 8 heads would all go to the same banks. MIXED: the bits of a group's number that the head's are mixed into.
  static constexpr int GROUPS_OF_8 = D / 8, MIXED = GROUPS_OF_8 % 8 == 0 ? 7 : GROUPS_OF_8 % 4 == 0 ? 3 : GROUPS_OF_8 % 2 == 0 ? 1 : 0;

  // Where a head's first group of 8 dims lies in a slice, and from there on any group: D is a multiple of (MIXED + 1) * 8, so
  // that one instruction finds it, and of groups MIXED + 1 apart it is known to be as far.
  __device__ __forceinline__ static int sums_place(int head) { return head * D + (head & MIXED) * 8; }
  __device__ __forceinline__ static int sums_place(int first, int group) { return (first ^ (group & MIXED) * 8) + (group & ~MIXED) * 8; }

  // What the product of a query and a key counts for in a softmax of base 2.
  __device__ __forceinline__ static float score(float product) {
    constexpr float LOG2_SCALE = static_cast<float>(Config::SCALE * 1.4426950408889634);
    if constexpr (Config::SOFT_CAP != 0) return soft_cap(product, Config::SOFT_CAP, Config::SCALE, LOG2_E);
    return product * LOG2_SCALE;
  }
};

// A unit: which heads, of which part of the context.
template <class A>
struct AttentionUnit {
  int split, kv_head, head, heads;
  bool newest, appends;

  __device__ __forceinline__ AttentionUnit(int unit, int splits) {
    const int group = splits == 1 ? unit : unit / splits;  // a division takes a hundred cycles
    const int part = group % A::GROUPS_PER_KV_HEAD;
    split = unit - group * splits;
    kv_head = group / A::GROUPS_PER_KV_HEAD;
    head = kv_head * A::RATIO + part * A::GROUP;
    heads = min(A::GROUP, A::RATIO - part * A::GROUP);
    newest = split == splits - 1;
    appends = A::APPEND && newest && part == 0;
  }
};

// The tiles of a unit, that of the new position included. window: positions that count, the new one included; 0: all.
template <class A>
struct TileRange {
  int oldest, first, last;  // oldest: position; first, last: tiles

  TileRange() = default;
  __device__ __forceinline__ TileRange(const AttentionUnit<A>& unit, int splits, int position, int window) {
    oldest = A::WINDOW && window > 0 ? max(0, position + 1 - window) : 0;
    const int before = oldest / tile::TILE_POSITIONS;
    const u32 tiles = position / tile::TILE_POSITIONS + 1 - before;
    first = before, last = before + static_cast<int>(tiles);
    if (splits > 1) {
      first = before + static_cast<int>(tiles * unit.split / static_cast<u32>(splits));
      last = before + static_cast<int>(tiles * (unit.split + 1) / static_cast<u32>(splits));
    }
  }
  __device__ __forceinline__ int count() const { return last - first; }
};

// How the tiles of a unit lie in chunks. Its consumer warps take tiles in turn, each at most one of a chunk.
//
// A warp passes over the chunks that it does not read without a look at their barriers, and the loader hands them back for it.
// But a barrier tells a phase only from the one before, so that a chunk may be waited for only when the one before it in the
// same slot has landed. Of a warp's chunks that is true if STEP, from one to the next, and the loads in flight are no more
// than the ring together, for loads are issued in order. If the ring is smaller, each warp waits for every chunk (HELD). If
// it is smaller even than a round of all warps (not WHOLE_ROUND), the last of them get their tiles only after the first have
// handed chunks back, and must not be waited for before that.
template <class A, class G>
struct TileChunks {
  static constexpr int TILES = G::chunk_bytes / A::TILE_BYTES;  // of a chunk
  static constexpr int STEP = (CONSUMER_WARPS + TILES - 1) / TILES;
  static constexpr bool HELD = STEP + G::Shared::MAX_WINDOW > G::Shared::RING_CHUNKS;
  static constexpr bool WHOLE_ROUND = STEP <= G::Shared::RING_CHUNKS;
  static_assert(TILES >= 1, "a tile does not fit a chunk");
  static_assert(TILES <= CONSUMER_WARPS, "a warp takes at most one tile of a chunk");

  __device__ __forceinline__ static int readers(int tiles) { return HELD ? CONSUMER_WARPS : tiles; }
  __device__ __forceinline__ static int of(const TileRange<A>& range) { return (range.count() + TILES - 1) / TILES; }
};

constexpr int LONE_LOADS = 2;  // how many more are in flight where one SM has all keys and values of a head

template <class A, class G>
__device__ __forceinline__ void load_attention(Loader<G>& loader, Instruction in) {
  using Chunks = TileChunks<A, G>;
  const Context<G>& context = loader.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int layer = in[isa::attention::LAYER], splits = in[isa::attention::SPLITS];
  const int window = A::WINDOW ? in[isa::attention::WINDOW] : 0;
  for (int i = 0; i < count; i++) {
    const AttentionUnit<A> unit(begin + i * stride, splits);
    const TileRange<A> range(unit, splits, context.position(), window);
    // What this launch appended; what was there before it needs no flag.
    if (context.step > 0 && range.last * tile::TILE_POSITIONS > p.position)
      loader.acquire_kv(p.kv_ready + layer * A::KV_HEADS + unit.kv_head, context.epoch() - 1);
    const unsigned char* head = p.kv + layer * p.kv_layer_stride + unit.kv_head * p.kv_head_stride;
    for (int t = range.first; t < range.last; t += Chunks::TILES) {
      const int tiles = min(Chunks::TILES, range.last - t);
      loader.load(head + static_cast<i64>(t) * A::TILE_BYTES, tiles * A::TILE_BYTES, 0, Chunks::readers(tiles), splits == 1 ? LONE_LOADS : 0);
    }
  }
}

// Attention of a warp over the unit's tiles: which it takes, and where they are.
template <class A, class G>
struct WarpTiles {
  using Chunks = TileChunks<A, G>;
  // There are registers for the first tile, whole, while the warp waits.
  static constexpr bool EARLY = A::D <= 128 && Chunks::WHOLE_ROUND;
  int next = 0;                // chunk of the unit
  const unsigned char* found;  // the tile, in the ring
  tile::KeyFragment<A::D> keys;
  tile::ValueFragment<A::D> values;
  float scored[2][2];  // scores of the tile that was added last, of all its positions

  // Finds tile `mine` of the unit. A warp passes over the chunks that hold none of its tiles, fewer than a round of all warps
  // takes.
  __device__ __forceinline__ void find(Consumer<G>& consumer, int mine) {
    const int chunk = static_cast<u32>(mine) / Chunks::TILES;
    if constexpr (Chunks::HELD)
      consumer.template skip_chunks<true>(chunk - next);
    else
      consumer.pass_chunks(chunk - next);
    next = chunk + 1;
    found = consumer.acquire_chunk() + (mine - chunk * Chunks::TILES) * A::TILE_BYTES;
  }

  // The first tile, if there is one and nobody need wait for it. Without one the warp reads what the copy engine may be
  // writing, and makes nothing of it: registers that only a branch fills would be held from one instruction to the next. Race
  // checkers, which do not know that it makes nothing of it, get the branch.
  __device__ __forceinline__ void read_first(Consumer<G>& consumer, bool there) {
    found = consumer.ring();
    if (there && Chunks::WHOLE_ROUND) find(consumer, consumer.context.warp);
    if constexpr (EARLY) {
      if (!G::race_check || there) keys.read(found, consumer.context.lane), values.read(found, consumer.context.lane);
      if (there) consumer.release_chunk();
    }
  }

  // Adds the tile that was found. The new position's key is put among the old ones, but its score is left by itself
  // (leave_new_score): its value is not among theirs.
  template <bool FIRST>
  __device__ __forceinline__ void add(Consumer<G>& consumer, const AttentionUnit<A>& unit, const TileRange<A>& range,
                                      const tile::QueryFragment<A::D>& query, int mine, tile::AttentionAccumulator<A::D>& accumulator) {
    const auto& shared = consumer.context.shared.attention;
    const int lane = consumer.context.lane;
    const int first = (range.first + mine) * tile::TILE_POSITIONS;
    const int place = consumer.context.position() - first;  // of the new one, if it is here
    const bool newest = unit.newest && place < tile::TILE_POSITIONS;
    float score[2][2];
    if constexpr (EARLY) {
      if (!FIRST) keys.read(found, lane);
      if (newest) keys.replace(place, shared.new_key, lane);
      tile::multiply_keys(query, keys, score);
    } else {
      if (newest) tile::put_key<A::D>(const_cast<unsigned char*>(found), place, shared.new_key, lane);
      tile::multiply_keys(query, tile::TileKeys<A::D>{found, lane}, score);
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int at = half * 8 + lane % 4 * 2 + i;
        scored[half][i] = A::score(score[half][i]);  // of all: that is faster than to ask first
        score[half][i] = at < place && (!A::WINDOW || at >= range.oldest - first) ? scored[half][i] : ptx::minus_infinity();
      }
    if constexpr (FIRST && EARLY) {
      accumulator.template add_tile<FIRST>(score, values);
    } else {
      accumulator.template add_tile<FIRST>(score, tile::TileValues<A::D>(found, lane));
      consumer.release_chunk();
    }
  }

  // Leaves the new position's score for the merge, if tile `last`, which was added last, holds it.
  __device__ __forceinline__ void leave_new_score(const Consumer<G>& consumer, const AttentionUnit<A>& unit, const TileRange<A>& range,
                                                  int last) const {
    const int place = consumer.context.position() - (range.first + last) * tile::TILE_POSITIONS, lane = consumer.context.lane;
    if (!unit.newest || place >= tile::TILE_POSITIONS) return;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (half * 8 + lane % 4 * 2 + i == place) consumer.context.shared.attention.new_score[lane / 4] = scored[half][i];
  }
};

}  // namespace jitmk::vm
