// ATTENTION: one new token over the cache of one key/value head, for the query heads that share it.
//
// Old keys and values stream through the ring ahead of time, like weights; only the new token's q, k and v come as
// words. The norm of queries and keys and RoPE happen in the prologue, where a whole head is at hand; the append to the
// cache, for which nobody waits, at the end.
#pragma once
#include "jitmk/vm/attention_tiles.cuh"
#include "jitmk/vm/head.cuh"

namespace jitmk::vm {

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

// Fetches the new token's heads, one a warp, or two: queries and the key, normed and rotated, and the value, to shared memory.
// meanwhile(): on every warp, while its words are on their way.
template <class A, class G, class Meanwhile>
__device__ __forceinline__ void attention_prologue(Consumer<G>& consumer, const AttentionUnit<A>& unit, const NewTokenOperands<A>& operands,
                                                   Meanwhile meanwhile) {
  using Quads = HeadQuads<A::D, A::ROTARY_DIM>;
  constexpr int D = A::D, PER_LANE = Quads::PER_LANE, ITEMS = A::GROUP + 2 > CONSUMER_WARPS ? 2 : 1, WORDS = ITEMS * PER_LANE * 2;
  static_assert(A::GROUP + 2 <= 2 * CONSUMER_WARPS, "more heads than warps can fetch");
  consumer.context.lane = ptx::opaque(consumer.context.lane);
  const Context<G>& context = consumer.context;
  auto& shared = context.shared.attention;
  const int items = unit.heads + (unit.newest ? 2 : 0);
  const auto head_of = [&unit](int item) {
    return item < unit.heads ? unit.head + item : A::HEADS + (item == unit.heads ? 0 : A::KV_HEADS) + unit.kv_head;
  };
  const u64* word[WORDS];
  bool wanted[WORDS];
  u32 payload[WORDS];
  float4 cos_sin[PER_LANE], weight[ITEMS][PER_LANE];
  // Where a quad's words go, counted from the first query. There are registers for one.
  constexpr bool PLACED = ITEMS * PER_LANE == 1;
  u32* queries = reinterpret_cast<u32*>(shared.query);
  const auto place_of = [&](int item, int word) {
    if (item < unit.heads) return item * AttentionShared<G>::QUERY_STRIDE / 2 + tile::fragment_word<D>(word);
    return static_cast<int>(reinterpret_cast<u32*>(item == unit.heads ? shared.new_key : shared.new_value) - queries) + word;
  };
  int low = 0, high = 0;
#pragma unroll
  for (int k = 0; k < ITEMS; k++) {
    const int item = context.warp + k * CONSUMER_WARPS;
    const bool is_query = item < unit.heads, is_key = item == unit.heads;
    const u64* from = (is_query || is_key ? operands.qkv : operands.values) + head_of(item) * isa::bf16_word(D / 2);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int quad = context.lane + i * WARP_LANES, at = 2 * (k * PER_LANE + i);
      word[at] = from + isa::bf16_word(Quads::low(quad)), word[at + 1] = from + isa::bf16_word(Quads::high(quad));
      wanted[at] = wanted[at + 1] = item < items && context.lane < Quads::QUADS;
      if constexpr (A::ROTARY_DIM > 0) cos_sin[i] = angles<Quads>(operands.rope, quad);
      if constexpr (A::QK_NORM != NormKind::NONE) weight[k][i] = quad_weight<Quads>(is_query ? operands.q_norm : operands.k_norm, quad);
    }
  }
  wait_words<2 * PER_LANE>(context, word, wanted, context.epoch(), Wait::QKV, head_of(context.warp) * (D / 2), payload, [&] {
    if constexpr (PLACED) {
      low = ptx::opaque(place_of(context.warp, Quads::low(context.lane)));
      high = ptx::opaque(place_of(context.warp, Quads::high(context.lane)));
    }
    meanwhile();
  });
#pragma unroll
  for (int k = 0; k < ITEMS; k++) {
    const int item = context.warp + k * CONSUMER_WARPS;
    const bool is_query = item < unit.heads, is_key = item == unit.heads;
    float4 x[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) x[i] = HeadQuad{payload[2 * (k * PER_LANE + i)], payload[2 * (k * PER_LANE + i) + 1]}.values();
    if (is_query || is_key) {
      if constexpr (A::QK_NORM != NormKind::NONE) normalise_head<A::QK_NORM, Quads>(x, weight[k], A::QK_NORM_EPS, context.lane);
      if constexpr (A::ROTARY_DIM > 0) {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) x[i] = rotate(x[i], cos_sin[i]);
      }
    }
    if (!wanted[2 * k * PER_LANE]) continue;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const int quad = context.lane + i * WARP_LANES;
      const HeadQuad y = pack_quad(x[i]);
      queries[PLACED ? low : place_of(item, Quads::low(quad))] = y.low;
      queries[PLACED ? high : place_of(item, Quads::high(quad))] = y.high;
    }
  }
  __syncwarp();
  if constexpr (!A::APPEND) {
    // KV_APPEND has put key and value where the next step looks for them.
    const u64* appended[1] = {operands.appended + unit.kv_head};
    u32 position[1];
    if (unit.newest && context.warp == 0) wait_words(context, appended, context.lane == 0, context.epoch(), Wait::APPENDED, unit.kv_head, position);
  }
}

// Appends the new token's key and value to the cache, on a warp each.
template <class A, class G>
__device__ __forceinline__ void append_new_token(const Consumer<G>& consumer, const AttentionUnit<A>& unit, int layer) {
  using Quads = HeadQuads<A::D, 0>;
  const Context<G>& context = consumer.context;
  if (context.warp >= 2) return;
  const bool is_key = context.warp == 0;
  const u32* from = reinterpret_cast<const u32*>(is_key ? context.shared.attention.new_key : context.shared.attention.new_value);
  u16* cache = tile_of<A::D>(context.params, layer, unit.kv_head, context.position());
  const int slot = context.position() % tile::TILE_POSITIONS;
  for (int quad = context.lane; quad < Quads::QUADS; quad += WARP_LANES)
    store_quad<Quads>(is_key, cache, slot, quad, {from[Quads::low(quad)], from[Quads::high(quad)]});
}

// Leaves a warp's sums in its slice, pair(n) of the lane's head and dims 8 n + 2 (lane % 4), and its softmax state in shared.
// place: of the first pair.
template <class A, class G, class Pair>
__device__ __forceinline__ void leave_sums(const Consumer<G>& consumer, const AttentionUnit<A>& unit, int place, SoftmaxState state, Pair pair) {
  const Context<G>& context = consumer.context;
  const int head = context.lane / 4;
  if (head >= unit.heads) return;
  if (context.lane % 4 == 0) context.shared.attention.state[context.warp][head] = state;
#pragma unroll
  for (int n = 0; n < A::D / 8; n++) *reinterpret_cast<float2*>(reinterpret_cast<float*>(consumer.slice) + A::sums_place(place, n)) = pair(n);
}

// Where a thread finds what it merges, and where it publishes: a quad of dims of a head.
template <class A, class G>
struct MergePlace {
  static constexpr int QUADS = A::D / 4;
  int head, quad, row;  // row: of the output
  u64* output;
  u64* lse;
  int sums;  // in a warp's slice, counted in quads

  MergePlace() = default;
  // i: the thread's number, or that and a multiple of their number.
  __device__ __forceinline__ MergePlace(const Consumer<G>& consumer, const AttentionUnit<A>& unit, u64* outputs, u64* logarithms, int i)
      : head(i / QUADS),
        quad(i % QUADS),
        row(unit.split * A::HEADS + unit.head + head),
        output(outputs + 2 * (row * QUADS + quad)),
        lse(logarithms + row * isa::LSE_STRIDE + quad),
        sums(A::sums_place(A::sums_place(head), quad / 2) / 4 + quad % 2) {}

  // Has it worked out now, not where it is wanted.
  __device__ __forceinline__ void settle() { ptx::settle(output), ptx::settle(lse), sums = ptx::opaque(sums); }
};

// Merges the warps' sums and the new token at some quad of dims, and publishes it. Of several splits each publishes its own
// output, and for each head the logarithm of its normaliser: -inf and zeros where it has no position.
template <class A, class G>
__device__ __forceinline__ void merge_warps(const Consumer<G>& consumer, const AttentionUnit<A>& unit, int splits, const MergePlace<A, G>& at) {
  const auto& shared = consumer.context.shared.attention;
  const u32 epoch = consumer.context.epoch();
  // A warp without tiles has a sum of 0, zeros, and a maximum of -inf, which must not meet another.
  const float score = shared.new_score[at.head], new_score = unit.newest ? score : ptx::minus_infinity();
  const uint2 value = reinterpret_cast<const uint2*>(shared.new_value)[at.quad];
  const float4 new_value = unpack_bf16(make_uint2(unit.newest ? value.x : 0, unit.newest ? value.y : 0));
  const unsigned char* slices = consumer.slice - consumer.context.warp * G::slice_bytes;
  SoftmaxState state[CONSUMER_WARPS];
  float4 sums[CONSUMER_WARPS];
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS; w++) {
    state[w] = shared.state[w][at.head];
    sums[w] = reinterpret_cast<const float4*>(slices + w * G::slice_bytes)[at.sums];
  }
  float of_pair[CONSUMER_WARPS / 2], maximum = fmaxf(new_score, tile::LOWEST_SCORE);
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS / 2; w++) of_pair[w] = fmaxf(state[2 * w].maximum, state[2 * w + 1].maximum);
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS / 2; w++) maximum = fmaxf(maximum, of_pair[w]);
  float sum = ptx::exp2_approx(new_score - maximum);
  float4 x = multiply(new_value, sum);
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS; w++) {
    const float weight = ptx::exp2_approx(state[w].maximum - maximum);
    sum += weight * state[w].sum;
    x = add(x, multiply(sums[w], weight));
  }
  const uint2 y = pack_bf16(multiply(x, sum == 0 ? 0.0f : ptx::reciprocal_approx(sum)));
  const u64 low = make_word(y.x, epoch), high = make_word(y.y, epoch), logarithm = make_word(__float_as_uint(maximum + ptx::log2_approx(sum)), epoch);
#pragma unroll
  for (int copy = 0; copy < A::OUTPUT_COPIES; copy++) {
    if (copy > 0 && splits > (A::MERGED ? isa::MERGED_SPLITS : 1)) break;  // partial results have one copy
    const int results = A::MERGED ? splits : 1;
    u64* output = at.output + copy * isa::copy_stride(results * A::OUTPUT_WORDS);
    ptx::store_relaxed_gpu(output, low), ptx::store_relaxed_gpu(output + 1, high);
    if (splits > 1 && at.quad < isa::LSE_WORDS)
      ptx::store_relaxed_gpu(at.lse + copy * isa::bf16_stride(results * A::HEADS * isa::LSE_WORDS), logarithm);
  }
}

// What does not depend on the new token is done while its words are on their way: a warp reads its first tile, and each
// thread works out what it will merge.
template <class A, class G>
__device__ __forceinline__ void consume_attention(Consumer<G>& consumer, Instruction in) {
  using Place = MergePlace<A, G>;
  using Chunks = TileChunks<A, G>;
  constexpr int THREADS = CONSUMER_WARPS * WARP_LANES, PLACES = (A::GROUP * Place::QUADS + THREADS - 1) / THREADS;  // PLACES: of a thread
  const Context<G>& context = consumer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int layer = in[isa::attention::LAYER], splits = in[isa::attention::SPLITS];
  const int window = A::WINDOW ? in[isa::attention::WINDOW] : 0;
  for (int i = 0; i < count; i++) {
    const AttentionUnit<A> unit(begin + i * stride, splits);
    consumer.mark(Mark::BEGIN);
    TileRange<A> range;
    u64 *outputs, *logarithms;
    Place place;
    int query_place, sums;
    WarpTiles<A, G> tiles;
    attention_prologue(consumer, unit, NewTokenOperands<A>(context, in), [&] {
      range = TileRange<A>(unit, splits, context.position(), window);
      outputs = context.params.words + in[isa::attention::OUTPUT], logarithms = context.params.words + in[isa::attention::LSE_OUT];
      place = Place(consumer, unit, outputs, logarithms, consumer.thread());
      place.settle();
      query_place = ptx::opaque(context.lane / 4 * AttentionShared<G>::QUERY_STRIDE + context.lane % 4 * 8);
      sums = ptx::opaque(A::sums_place(context.lane / 4) + context.lane % 4 * 2);
      tiles.read_first(consumer, context.warp < range.count());
    });
    consumer.mark(Mark::INPUT);
    consumer.meet_after_poll();
    u32 told = context.told();  // looked at only later, for that takes a while
    consumer.mark(Mark::MET);
    if (context.warp < range.count()) {
      const tile::QueryFragment<A::D> query(context.shared.attention.query + query_place, context.lane);
      tile::AttentionAccumulator<A::D> accumulator;
      if constexpr (!Chunks::WHOLE_ROUND) tiles.find(consumer, context.warp);
      int mine = context.warp;
      tiles.template add<true>(consumer, unit, range, query, mine, accumulator);
      while ((mine += CONSUMER_WARPS) < range.count()) {
        tiles.find(consumer, mine);
        tiles.template add<false>(consumer, unit, range, query, mine, accumulator);
      }
      tiles.leave_new_score(consumer, unit, range, mine - CONSUMER_WARPS);
      leave_sums(consumer, unit, sums, {accumulator.maximum, accumulator.total()},
                 [&](int n) { return make_float2(accumulator.output[n][0], accumulator.output[n][1]); });
    } else {
      leave_sums(consumer, unit, sums, {ptx::minus_infinity(), 0}, [](int) { return make_float2(0, 0); });
    }
    const auto skip_the_rest = [&] { consumer.template skip_chunks<Chunks::HELD>(Chunks::of(range) - tiles.next); };
    if constexpr (!Chunks::WHOLE_ROUND) skip_the_rest();
    consumer.mark(Mark::DOTS);
    consumer.meet(told);
    told = context.told();
#pragma unroll
    for (int p = 0; p < PLACES; p++) {
      const int quad = consumer.thread() + p * THREADS;
      if (quad >= unit.heads * Place::QUADS) continue;
      merge_warps(consumer, unit, splits, p == 0 ? place : Place(consumer, unit, outputs, logarithms, quad));
    }
    __syncwarp();
    consumer.mark(Mark::STORED);
    if constexpr (Chunks::WHOLE_ROUND) skip_the_rest();  // nobody waits any more
    if (unit.appends) {
      append_new_token(consumer, unit, layer);
      consumer.report_append();
    }
    consumer.meet(told);  // slices and shared state may be overwritten from here on
  }
}

// The consumers publish; what is left is to tell the loaders of the next step that the cache has grown.
template <class A, class G>
__device__ __forceinline__ void store_attention(Storer<G>& storer, Instruction in) {
  const Context<G>& context = storer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int layer = in[isa::attention::LAYER], splits = in[isa::attention::SPLITS];
  for (int i = 0; i < count; i++) {
    const AttentionUnit<A> unit(begin + i * stride, splits);
    if (unit.appends) storer.release_kv(context.params.kv_ready + layer * A::KV_HEADS + unit.kv_head);
  }
}

}  // namespace jitmk::vm
