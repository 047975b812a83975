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
  // stores of 4 heads would all go to the same banks. MIXES: the groups that change places among themselves.
  static constexpr int MIXES = D % 32 == 0 ? 4 : D % 16 == 0 ? 2 : 1;
  __device__ __forceinline__ static int sums_place(int head, int group) { return head * D + (group ^ head % MIXES) * 8; }

  static constexpr float LOG2_SCALE = static_cast<float>(Config::SCALE * 1.4426950408889634);
  // What the product of a query and a key counts for in a softmax of base 2.
  __device__ __forceinline__ static float score(float product) {
    if constexpr (Config::SOFT_CAP != 0) return soft_cap(product, Config::SOFT_CAP, Config::SCALE, LOG2_E);
    return product * LOG2_SCALE;
  }

  // Scores of products that are no larger are not far from 0, and of no products where a cap keeps them near.
  static constexpr float FAR_PRODUCT = tile::FAR_SCORE / LOG2_SCALE;
  static constexpr bool MAY_BE_FAR = Config::SOFT_CAP == 0 || Config::SOFT_CAP * LOG2_E > tile::FAR_SCORE;
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

// Attention of a warp over its tiles of a unit: which they are, where they are, and what counts of them.
template <class A, class G>
class WarpTiles {
 public:
  using Chunks = TileChunks<A, G>;
  // There are registers for the first tiles, whole, while the warp waits. It keeps their chunks until it has read them all, so that
  // the ring must hold all from the first to the last: a shorter one would wait for itself.
  static constexpr bool EARLY = A::D <= 128 && Chunks::WHOLE_ROUND;
  static constexpr int FIRST_TILES = EARLY && (A::EARLY_TILES - 1) * Chunks::STEP < G::Shared::RING_CHUNKS ? A::EARLY_TILES : 1;

  WarpTiles() = default;
  __device__ __forceinline__ WarpTiles(const Context<G>& context, const AttentionUnit<A>& unit, const TileRange<A>& range)
      : mine_(context.warp),
        count_(range.count()),
        newest_(unit.newest ? context.position() : -1),
        position_(context.position()),
        far_(context.lane / 4 < unit.heads ? A::FAR_PRODUCT : -ptx::minus_infinity()),
        key_(context.lane % 4 * 16),
        range_(range) {
    ptx::settle(far_), ptx::settle(key_);
#pragma unroll
    for (int t = 0; t < FIRST_TILES; t++) {
      other_heads_[t] = make_uint2(context.lane + t, context.lane ^ (t + 1));
      if constexpr (A::D <= 128) ptx::settle(other_heads_[t].x), ptx::settle(other_heads_[t].y);
      has_[t] = mine_ + t * CONSUMER_WARPS < count_, place_[t] = place_in(t);
      ptx::settle(has_[t]), ptx::settle(place_[t]);
    }
  }

  __device__ __forceinline__ bool any() const { return mine_ < count_; }
  __device__ __forceinline__ int chunks_passed() const { return next_; }

  // Reads the first tiles, if they are there and nobody need wait for them. Without one the warp reads what the copy engine may be
  // writing, and makes nothing of it: registers that only a branch fills would be held from one instruction to the next. All lanes
  // read the same then, which takes a quarter of the time. Race checkers, which do not know that nothing is made of it, get the
  // branch.
  __device__ __forceinline__ void read_first(Consumer<G>& consumer) {
    found_ = consumer.ring();
    int slots[FIRST_TILES] = {};
    bool there[FIRST_TILES];
#pragma unroll
    for (int t = 0; t < FIRST_TILES; t++) {
      there[t] = mine_ + t * CONSUMER_WARPS < count_;
      if (there[t] && Chunks::WHOLE_ROUND) find(consumer, mine_ + t * CONSUMER_WARPS);
      if constexpr (EARLY) {
        const int lane = there[t] ? consumer.context.lane : 0;
        if (!G::race_check || there[t]) keys_[t].read(found_, lane), values_[t].read(found_, lane);
        if (there[t]) slots[t] = consumer.keep_chunk();
      }
    }
    if constexpr (EARLY) consumer.release_kept(slots, there);
  }

  // Adds the first tiles; there is one at least.
  template <int TILES = FIRST_TILES>
  __device__ __forceinline__ void add_first(Consumer<G>& consumer, const tile::QueryFragment<A::D>& query,
                                            tile::AttentionAccumulator<A::D>& accumulator) {
    if constexpr (TILES > 1) {
      if (!has_[TILES - 1]) return add_first<TILES - 1>(consumer, query, accumulator);
    }
    if constexpr (EARLY) {
      auto& shared = consumer.context.shared.attention;
      const int lane = consumer.context.lane;
      const auto* key = reinterpret_cast<const u16*>(reinterpret_cast<const unsigned char*>(shared.new_key) + key_);
      float scores[TILES][2][2];
#pragma unroll
      for (int t = 0; t < TILES; t++) keys_[t].replace(place_[t] - lane / 4, key, lane);
#pragma unroll
      for (int t = 0; t < TILES; t++) tile::multiply_keys(query, keys_[t], scores[t]);
      bool far = false;
#pragma unroll
      for (int t = 0; t < TILES; t++) far |= weigh(shared, lane, mine_ + t * CONSUMER_WARPS, place_[t], scores[t]);
      accumulator.template add_tiles<true>(scores, far, values_, other_heads_);
    } else {
      if constexpr (!Chunks::WHOLE_ROUND) find(consumer, mine_);
      add_found<true>(consumer, query, accumulator);
    }
    mine_ += TILES * CONSUMER_WARPS;
  }

  // Adds those that are left, one by one.
  __device__ __forceinline__ void add_others(Consumer<G>& consumer, const tile::QueryFragment<A::D>& query,
                                             tile::AttentionAccumulator<A::D>& accumulator) {
    for (; mine_ < count_; mine_ += CONSUMER_WARPS) {
      find(consumer, mine_);
      add_found<false>(consumer, query, accumulator);
    }
  }

 private:
  __device__ __forceinline__ int first_position(int tile) const { return (range_.first + tile) * tile::TILE_POSITIONS; }
  // The place of the new position in the t-th tile from here, which it is not in unless it is the unit's.
  __device__ __forceinline__ int place_in(int t) const { return newest_ - first_position(mine_ + t * CONSUMER_WARPS); }
  __device__ __forceinline__ static bool is_inside(int place) { return place >= 0 && place < tile::TILE_POSITIONS; }

  // Finds a tile. A warp passes over the chunks that hold none of its tiles, fewer than a round of all warps takes.
  __device__ __forceinline__ void find(Consumer<G>& consumer, int tile) {
    const int chunk = static_cast<u32>(tile) / Chunks::TILES;
    if constexpr (Chunks::HELD)
      consumer.template skip_chunks<true>(chunk - next_);
    else
      consumer.pass_chunks(chunk - next_);
    next_ = chunk + 1;
    found_ = consumer.acquire_chunk() + (tile - chunk * Chunks::TILES) * A::TILE_BYTES;
  }

  // Adds the tile that was found, read as it is wanted.
  template <bool FIRST>
  __device__ __forceinline__ void add_found(Consumer<G>& consumer, const tile::QueryFragment<A::D>& query,
                                            tile::AttentionAccumulator<A::D>& accumulator) {
    auto& shared = consumer.context.shared.attention;
    const int lane = consumer.context.lane, place = place_in(0);
    float scores[1][2][2];
    if constexpr (EARLY) {
      keys_[0].read(found_, lane);
      keys_[0].replace(place - lane / 4, shared.new_key + lane % 4 * 8, lane);
      tile::multiply_keys(query, keys_[0], scores[0]);
    } else {
      if (is_inside(place)) tile::put_key<A::D>(const_cast<unsigned char*>(found_), place, shared.new_key, lane);
      tile::multiply_keys(query, tile::TileKeys<A::D>{found_, lane}, scores[0]);
    }
    const bool far = weigh(shared, lane, mine_, place, scores[0]);
    const tile::TileValues<A::D> values(found_, lane);
    accumulator.template add_tiles<FIRST>(scores, far, &values, other_heads_);
    consumer.release_chunk();
  }

  // Makes scores of a tile's products: -inf of positions that do not count, those past the new one or before the window, and the new
  // one itself, whose value is not among the old ones and whose score is left for the merge. Returns whether one may be far from 0.
  __device__ __forceinline__ bool weigh(AttentionShared<G>& shared, int lane, int tile, int place, float (&product)[2][2]) const {
    const float largest = fmaxf(fmaxf(fabsf(product[0][0]), fabsf(product[0][1])), fmaxf(fabsf(product[1][0]), fabsf(product[1][1])));
#pragma unroll
    for (int i = 0; i < 4; i++) product[i / 2][i % 2] = A::score(product[i / 2][i % 2]);
    const int first = first_position(tile);
    if (first + tile::TILE_POSITIONS > position_ || (A::WINDOW && first < range_.oldest)) {
      if (is_inside(place)) {
        const float low = place & 1 ? product[0][1] : product[0][0], high = place & 1 ? product[1][1] : product[1][0];
        if (lane % 4 == place % 8 / 2) shared.new_score[lane / 4] = place & 8 ? high : low;
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int at = first + i / 2 * 8 + lane % 4 * 2 + i % 2;
        if (at >= position_ || (A::WINDOW && at < range_.oldest)) product[i / 2][i % 2] = ptx::minus_infinity();
      }
    }
    return A::MAY_BE_FAR && largest > far_;
  }

  int mine_;  // the tile that is next
  int count_, newest_, position_;
  float far_;  // of products, for this lane; infinite for one without a head
  int key_;    // bytes to the lane's dims of a key
  TileRange<A> range_;
  int next_ = 0;                               // chunk of the unit
  const unsigned char* found_;                 // a tile, in the ring
  int has_[FIRST_TILES], place_[FIRST_TILES];  // of the first tiles: whether they are there, and place_in
  tile::KeyFragment<A::D> keys_[FIRST_TILES];
  tile::ValueFragment<A::D> values_[FIRST_TILES];
  uint2 other_heads_[FIRST_TILES];  // see AttentionAccumulator::add_tiles
};

}  // namespace jitmk::vm
