// ATTENTION: one new token over the cache of one key/value head, for the query heads that share it.
//
// Old keys and values stream through the ring ahead of time, like weights; only the new token's q, k and v come as
// words. The norm of queries and keys, RoPE and the append to the cache happen in the prologue, where a whole head is at
// hand.
#pragma once
#include "jitmk/tile/attention.cuh"
#include "jitmk/vm/activation.cuh"
#include "jitmk/vm/head.cuh"

namespace jitmk::vm {

// Config is rendered from AttentionConfig.
template <class Config>
struct Attention : Config {
  using Config::GROUP, Config::HEADS, Config::KV_HEADS;
  static constexpr int D = Config::HEAD_DIM;
  static constexpr int RATIO = HEADS / KV_HEADS, GROUPS_PER_KV_HEAD = (RATIO + GROUP - 1) / GROUP;
  static constexpr int TILE_BYTES = tile::TILE_POSITIONS * D * 2 * 2;
  static constexpr int OUTPUT_STRIDE = isa::copy_stride(HEADS * D / 2);
  // A warp's sums lie in its slice as fp32 [heads][D], each head's groups of 8 dims in an order of its own: in the same one,
  // stores of 8 heads would all go to the same banks. MIXED: the bits of a group's number that the head's are mixed into.
  static constexpr int GROUPS_OF_8 = D / 8, MIXED = GROUPS_OF_8 % 8 == 0 ? 7 : GROUPS_OF_8 % 4 == 0 ? 3 : GROUPS_OF_8 % 2 == 0 ? 1 : 0;

  // Where a head's group of 8 dims lies in a slice. Written so that of groups MIXED + 1 apart it is known to be as far.
  __device__ __forceinline__ static int sums_place(int head, int group) {
    return head * D + ((group & MIXED) ^ (head & MIXED)) * 8 + (group & ~MIXED) * 8;
  }

  // What the product of a query and a key counts for in a softmax of base 2.
  __device__ __forceinline__ static float score(float product) {
    constexpr float LOG2_E = 1.44269504f, LOG2_SCALE = static_cast<float>(Config::SCALE * 1.4426950408889634);
    if constexpr (Config::SOFT_CAP != 0) return soft_cap(product, Config::SOFT_CAP, Config::SCALE, LOG2_E);
    return product * LOG2_SCALE;
  }
};

// The scores of a tile, of whose positions those in [first, end) count.
template <class A>
struct TileScores {
  int first, end;

  __device__ __forceinline__ float operator()(float product, int position) const {
    const float score = A::score(product);  // of all: that is faster than to ask first
    return position < end && (!A::WINDOW || position >= first) ? score : ptx::minus_infinity();
  }
};

// A unit: which heads, and which of the old tiles. window: positions that count, the new one included; 0: all.
template <class A>
struct AttentionUnit {
  int split, kv_head, head, heads, oldest, first_tile, last_tile;
  bool newest, appends;

  __device__ __forceinline__ AttentionUnit(int unit, int splits, int position, int window) {
    const int group = unit / splits, part = group % A::GROUPS_PER_KV_HEAD;
    split = unit % splits;
    kv_head = group / A::GROUPS_PER_KV_HEAD;
    head = kv_head * A::RATIO + part * A::GROUP;
    heads = min(A::GROUP, A::RATIO - part * A::GROUP);
    oldest = A::WINDOW && window > 0 ? max(0, position + 1 - window) : 0;
    const int before = oldest / tile::TILE_POSITIONS;
    u32 tiles = (position + tile::TILE_POSITIONS - 1) / tile::TILE_POSITIONS - before;
    if (A::WINDOW && oldest == position) tiles = 0;  // though the new position's tile may hold others
    first_tile = before + static_cast<int>(tiles * split / static_cast<u32>(splits));
    last_tile = before + static_cast<int>(tiles * (split + 1) / static_cast<u32>(splits));
    newest = split == splits - 1;
    appends = A::APPEND && newest && part == 0;
  }
};

// How the tiles of a unit lie in chunks. Its consumer warps take tiles in turn, each at most one of a chunk.
//
// A warp passes over the chunks that it does not read without a look at their barriers, and the loader hands them back for it.
// But a barrier tells a phase only from the one before, so that a chunk may be waited for only when the one before it in the
// same slot has landed. Of a warp's chunks that is true if STEP, from one to the next, and the loads in flight are no more
// than the ring together, for loads are issued in order. If the ring is smaller, each warp waits for every chunk (HELD).
template <class A, class G>
struct TileChunks {
  static constexpr int TILES = G::chunk_bytes / A::TILE_BYTES;  // of a chunk
  static constexpr int STEP = (CONSUMER_WARPS + TILES - 1) / TILES;
  static constexpr bool HELD = STEP + G::Shared::MAX_WINDOW > G::Shared::RING_CHUNKS;
  static_assert(TILES >= 1, "a tile does not fit a chunk");
  static_assert(TILES <= CONSUMER_WARPS, "a warp takes at most one tile of a chunk");

  __device__ __forceinline__ static int readers(int tiles) { return HELD ? CONSUMER_WARPS : tiles; }
  __device__ __forceinline__ static int of(const AttentionUnit<A>& unit) { return (unit.last_tile - unit.first_tile + TILES - 1) / TILES; }
};

template <class A, class G>
__device__ __forceinline__ void load_attention(Loader<G>& loader, Instruction in) {
  using Chunks = TileChunks<A, G>;
  const Context<G>& context = loader.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int layer = in[isa::attention::LAYER], splits = in[isa::attention::SPLITS];
  const int window = A::WINDOW ? in[isa::attention::WINDOW] : 0;
  for (int i = 0; i < count; i++) {
    const AttentionUnit<A> unit(begin + i * stride, splits, context.position(), window);
    // What this launch appended; what was there before it needs no flag.
    if (context.step > 0 && unit.last_tile * tile::TILE_POSITIONS > p.position)
      loader.acquire_kv(p.kv_ready + layer * A::KV_HEADS + unit.kv_head, context.epoch() - 1);
    const unsigned char* head = p.kv + layer * p.kv_layer_stride + unit.kv_head * p.kv_head_stride;
    for (int t = unit.first_tile; t < unit.last_tile; t += Chunks::TILES) {
      const int tiles = min(Chunks::TILES, unit.last_tile - t);
      loader.load(head + static_cast<i64>(t) * A::TILE_BYTES, tiles * A::TILE_BYTES, 0, Chunks::readers(tiles));
    }
  }
}

// Where an instruction finds the new token.
template <class A>
struct NewTokenOperands {
  const u64 *qkv, *values, *appended;
  const float2* rope = nullptr;  // the position's angles; null in a layer that does not rotate
  const float *q_norm, *k_norm;

  template <class G>
  __device__ __forceinline__ NewTokenOperands(const Context<G>& context, Instruction in) {
    const Params& p = context.params;
    qkv = p.words + in[isa::attention::INPUT];
    values = p.words + in[isa::attention::VALUE_INPUT];
    if constexpr (A::ROTARY_DIM > 0) {
      const int table = in[isa::attention::ROPE];
      if (table >= 0) rope = p.rope + static_cast<i64>(context.position()) * A::ROPE_STRIDE + table;
    }
    if constexpr (A::QK_NORM != NormKind::NONE) {
      q_norm = p.constants + in[isa::attention::Q_NORM];
      k_norm = p.constants + in[isa::attention::K_NORM];
    }
    if constexpr (!A::APPEND) appended = p.words + in[isa::attention::APPENDED];
  }
};

// Fetches the new token's heads, one head a warp: normed and rotated queries to shared memory, key and value there and to
// the cache.
template <class A, class G>
__device__ __forceinline__ void attention_prologue(Consumer<G>& consumer, const AttentionUnit<A>& unit, NewTokenOperands<A> operands, int layer) {
  using Quads = HeadQuads<A::D, A::ROTARY_DIM>;
  constexpr int D = A::D, PER_LANE = Quads::PER_LANE;
  if constexpr (A::QK_NORM != NormKind::NONE || A::WINDOW || A::SOFT_CAP != 0 || D > 128) consumer.context.lane = ptx::opaque(consumer.context.lane);
  const Context<G>& context = consumer.context;
  const Params& p = context.params;
  auto& shared = context.shared.attention;
  const int position = context.position(), slot = position % tile::TILE_POSITIONS;
  u16* cache = tile_of<D>(p, layer, unit.kv_head, position);
  const int items = unit.heads + (unit.newest ? 2 : 0);
  for (int item = context.warp; item < items; item += CONSUMER_WARPS) {
    const bool is_query = item < unit.heads, is_key = item == unit.heads;
    const int head = is_query ? unit.head + item : A::HEADS + (is_key ? 0 : A::KV_HEADS) + unit.kv_head;
    const u64* from = (is_query || is_key ? operands.qkv : operands.values) + head * isa::bf16_word(D / 2);
    u32* target = reinterpret_cast<u32*>(is_query ? shared.query + item * AttentionShared<G>::QUERY_STRIDE
                                         : is_key ? shared.new_key
                                                  : shared.new_value);
    float4 x[PER_LANE], cos_sin[PER_LANE], weight[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int quad = context.lane + i * WARP_LANES;
      if constexpr (A::ROTARY_DIM > 0) cos_sin[i] = angles<Quads>(operands.rope, quad);
      if constexpr (A::QK_NORM != NormKind::NONE) weight[i] = quad_weight<Quads>(is_query ? operands.q_norm : operands.k_norm, quad);
    }
    fetch_head<Quads>(context, from, Wait::QKV, head * (D / 2), x);
    if (is_query || is_key) {
      if constexpr (A::QK_NORM != NormKind::NONE) normalise_head<A::QK_NORM, Quads>(x, weight, A::QK_NORM_EPS, context.lane);
      if constexpr (A::ROTARY_DIM > 0) {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) x[i] = rotate(x[i], cos_sin[i]);
      }
    }
    if (context.lane >= Quads::QUADS) continue;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int quad = context.lane + i * WARP_LANES;
      const HeadQuad y = pack_quad(x[i]);
      const bool is_value = !is_query && !is_key;
      target[is_value ? Quads::low(quad) : tile::fragment_word<D>(Quads::low(quad))] = y.low;
      target[is_value ? Quads::high(quad) : tile::fragment_word<D>(Quads::high(quad))] = y.high;
      if (unit.appends && is_key)
        store_key<Quads>(cache, slot, quad, y);
      else if (unit.appends && !is_query)
        store_value<Quads>(cache, slot, quad, y);
    }
  }
  if constexpr (!A::APPEND) {
    // KV_APPEND has put key and value where the next step looks for them.
    const u64* word[1] = {operands.appended + unit.kv_head};
    u32 payload[1];
    if (unit.newest && context.warp == 0) wait_words(context, word, context.lane == 0, context.epoch(), Wait::APPENDED, unit.kv_head, payload);
  }
}

// Adds tile `mine` of the unit, the warp's first or not, to its sums. chunk: the next of the unit.
template <bool FIRST, class A, class G>
__device__ __forceinline__ void attend_tile(Consumer<G>& consumer, const AttentionUnit<A>& unit, const tile::QueryFragment<A::D>& query, int mine, int& chunk,
                                            tile::AttentionAccumulator<A::D>& accumulator) {
  using Chunks = TileChunks<A, G>;
  consumer.template skip_chunks<Chunks::HELD>(mine / Chunks::TILES - chunk);
  chunk = mine / Chunks::TILES + 1;
  const int first = (unit.first_tile + mine) * tile::TILE_POSITIONS;
  const TileScores<A> scores{unit.oldest - first, min(tile::TILE_POSITIONS, consumer.context.position() - first)};
  accumulator.template add_tile<FIRST>(query, consumer.acquire_chunk() + mine % Chunks::TILES * A::TILE_BYTES, scores, consumer.context.lane);
  consumer.release_chunk();
}

// Leaves a warp's sums in its slice, pair(n) of the lane's head and dims 8 n + 2 (lane % 4), and its softmax state in shared.
template <class A, class G, class Pair>
__device__ __forceinline__ void leave_sums(const Consumer<G>& consumer, const AttentionUnit<A>& unit, SoftmaxState state, Pair pair) {
  const Context<G>& context = consumer.context;
  const int head = context.lane / 4;
  if (head >= unit.heads) return;
  if (context.lane % 4 == 0) context.shared.attention.state[context.warp][head] = state;
  float* sums = reinterpret_cast<float*>(consumer.slice) + context.lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < A::D / 8; n++) *reinterpret_cast<float2*>(sums + A::sums_place(head, n)) = pair(n);
}

// Attention over the old tiles: leaves this warp's sums. A warp reads the chunks that hold its tiles, and skips the others.
template <class A, class G>
__device__ __forceinline__ void attend_old_tiles(Consumer<G>& consumer, const AttentionUnit<A>& unit) {
  constexpr int D = A::D;
  using Chunks = TileChunks<A, G>;
  const Context<G>& context = consumer.context;
  auto& shared = context.shared.attention;
  const int lane = context.lane;
  const tile::QueryFragment<D> query(shared.query, AttentionShared<G>::QUERY_STRIDE, lane);
  // The new token's scores: of the warp that is the last to get a tile.
  if (unit.newest && context.warp == CONSUMER_WARPS - 1) {
    const float product = query.times(tile::QueryFragment<D>(shared.new_key, 0, lane));
    if (lane % 4 == 0) shared.new_score[lane / 4] = A::score(product);
  }
  int chunk = 0, mine = context.warp;  // chunk: the next of the unit
  if (unit.first_tile + mine < unit.last_tile) {
    tile::AttentionAccumulator<D> accumulator;
    attend_tile<true>(consumer, unit, query, mine, chunk, accumulator);
    for (mine += CONSUMER_WARPS; unit.first_tile + mine < unit.last_tile; mine += CONSUMER_WARPS) attend_tile<false>(consumer, unit, query, mine, chunk, accumulator);
    leave_sums(consumer, unit, {accumulator.maximum, accumulator.total()}, [&](int n) { return make_float2(accumulator.output[n][0], accumulator.output[n][1]); });
  } else {
    leave_sums(consumer, unit, {ptx::minus_infinity(), 0}, [](int) { return make_float2(0, 0); });
  }
  consumer.template skip_chunks<Chunks::HELD>(Chunks::of(unit) - chunk);
}

constexpr float LOWEST_SCORE = -1e30f;  // of any that a maximum is taken with

// Merges the warps' sums and the new token; every thread takes some quads of dims and publishes them. Of several splits
// each publishes its own output, and for each head the logarithm of its normaliser: -inf and zeros where it has no position.
template <class A, class G>
__device__ __forceinline__ void merge_warps(const Consumer<G>& consumer, const AttentionUnit<A>& unit, int splits, Instruction in) {
  constexpr int D = A::D, QUADS = D / 4;
  const Context<G>& context = consumer.context;
  const auto& shared = context.shared.attention;
  const u32 epoch = context.epoch();
  u64* output = context.params.words + in[isa::attention::OUTPUT];
  u64* lse = context.params.words + in[isa::attention::LSE_OUT];
  const int first_row = unit.split * A::HEADS + unit.head;
  const float* first_slice = reinterpret_cast<const float*>(consumer.slice - context.warp * G::slice_bytes);
  for (int i = consumer.thread(); i < unit.heads * QUADS; i += CONSUMER_WARPS * WARP_LANES) {
    const int head = i / QUADS, quad = i % QUADS;
    // A warp without tiles has a sum of 0, zeros, and a maximum of -inf, which must not meet another.
    const float new_score = unit.newest ? shared.new_score[head] : ptx::minus_infinity();
    const float4 new_value = unpack_bf16(reinterpret_cast<const uint2*>(shared.new_value)[quad]);
    SoftmaxState state[CONSUMER_WARPS];
    float4 sums[CONSUMER_WARPS];
#pragma unroll
    for (int w = 0; w < CONSUMER_WARPS; w++) {
      state[w] = shared.state[w][head];
      sums[w] = *reinterpret_cast<const float4*>(first_slice + w * (G::slice_bytes / 4) + A::sums_place(head, quad / 2) + quad % 2 * 4);
    }
    float maximum = fmaxf(new_score, LOWEST_SCORE);
#pragma unroll
    for (int w = 0; w < CONSUMER_WARPS; w++) maximum = fmaxf(maximum, state[w].maximum);
    float sum = unit.newest ? ptx::exp2_approx(new_score - maximum) : 0;
    float4 x = unit.newest ? multiply(new_value, sum) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < CONSUMER_WARPS; w++) {
      const float weight = ptx::exp2_approx(state[w].maximum - maximum);
      sum += weight * state[w].sum;
      x = add(x, multiply(sums[w], weight));
    }
    const uint2 y = pack_bf16(multiply(x, sum == 0 ? 0.0f : ptx::reciprocal_approx(sum)));
#pragma unroll
    for (int copy = 0; copy < A::OUTPUT_COPIES; copy++) {
      if (copy > 0 && splits > 1) break;  // partial results have one copy
      u64* to = output + copy * A::OUTPUT_STRIDE + 2 * ((first_row + head) * QUADS + quad);
      ptx::store_relaxed_gpu(to, make_word(y.x, epoch));
      ptx::store_relaxed_gpu(to + 1, make_word(y.y, epoch));
    }
    if (splits > 1 && quad < isa::LSE_WORDS)
      ptx::store_relaxed_gpu(lse + (first_row + head) * isa::LSE_STRIDE + quad, make_word(__float_as_uint(maximum + ptx::log2_approx(sum)), epoch));
  }
}

template <class A, class G>
__device__ __forceinline__ void consume_attention(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int layer = in[isa::attention::LAYER], splits = in[isa::attention::SPLITS];
  const int window = A::WINDOW ? in[isa::attention::WINDOW] : 0;
  for (int i = 0; i < count; i++) {
    const AttentionUnit<A> unit(begin + i * stride, splits, context.position(), window);
    consumer.mark(Mark::BEGIN);
    attention_prologue(consumer, unit, NewTokenOperands<A>(context, in), layer);
    consumer.mark(Mark::INPUT);
    consumer.meet();
    consumer.mark(Mark::MET);
    attend_old_tiles(consumer, unit);
    consumer.mark(Mark::DOTS);
    consumer.meet();
    merge_warps(consumer, unit, splits, in);
    consumer.mark(Mark::STORED);
    if (unit.appends) consumer.report_append();
    consumer.meet();  // slices and shared state may be overwritten from here on
  }
}

// The consumers publish; what is left is to tell the loaders of the next step that the cache has grown.
template <class A, class G>
__device__ __forceinline__ void store_attention(Storer<G>& storer, Instruction in) {
  const Context<G>& context = storer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int layer = in[isa::attention::LAYER], splits = in[isa::attention::SPLITS];
  const int window = A::WINDOW ? in[isa::attention::WINDOW] : 0;
  for (int i = 0; i < count; i++) {
    const AttentionUnit<A> unit(begin + i * stride, splits, context.position(), window);
    if (unit.appends) storer.release_kv(context.params.kv_ready + layer * A::KV_HEADS + unit.kv_head);
  }
}

}  // namespace jitmk::vm
