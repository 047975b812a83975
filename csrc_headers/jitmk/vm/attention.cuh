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
  float4 cos_sin[ITEMS][PER_LANE], weight[ITEMS][PER_LANE];
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
      // Values are rotated by nothing: that is faster than to ask.
      if constexpr (A::ROTARY_DIM > 0) cos_sin[k][i] = angles<Quads>(is_query || is_key ? operands.rope : nullptr, quad);
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
    if constexpr (A::QK_NORM != NormKind::NONE) {
      if (is_query || is_key) normalise_head<A::QK_NORM, Quads>(x, weight[k], A::QK_NORM_EPS, context.lane);
    }
    if constexpr (A::ROTARY_DIM > 0) {
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) x[i] = rotate(x[i], cos_sin[k][i]);
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

constexpr float LEAST_SUM = 1e-30f;  // less than any normaliser of something: exponentials are 2^-FAR_SCORE at least

// The sum of COUNT values, a power of 2, in pairs.
template <int COUNT, class Value>
__device__ __forceinline__ float sum_of(Value value) {
  if constexpr (COUNT == 1)
    return value(0);
  else
    return sum_of<COUNT / 2>(value) + sum_of<COUNT / 2>([&](int i) { return value(i + COUNT / 2); });
}

// Something in shared memory, so many bytes behind a place that the compiler knows: that is one instruction.
template <class T, class Base>
__device__ __forceinline__ T* behind(Base* base, int bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(base) + bytes);
}

// Where a lane leaves its head's sums in its warp's slice: the first groups of dims, in bytes.
template <class A>
struct LeavePlace {
  int sums[A::MIXES];

  LeavePlace() = default;
  __device__ __forceinline__ explicit LeavePlace(int lane) {
#pragma unroll
    for (int n = 0; n < A::MIXES; n++) {
      sums[n] = (A::sums_place(lane / 4, n) + lane % 4 * 2) * 4;
      if constexpr (A::D <= 128) ptx::settle(sums[n]);
    }
  }
};

// Leaves a warp's softmax state and sums, pair(n) of the lane's head and dims 8 n + 2 (lane % 4).
template <class A, class G, class Pair>
__device__ __forceinline__ void leave_sums(const Consumer<G>& consumer, const AttentionUnit<A>& unit, const LeavePlace<A>& to, SoftmaxState state,
                                           Pair pair) {
  const int head = consumer.context.lane / 4;
  if (head >= unit.heads) return;
  consumer.context.shared.attention.state[consumer.context.warp][head] = state;  // all four lanes of a head leave the same
#pragma unroll
  for (int n = 0; n < A::D / 8; n++) *behind<float2>(consumer.slice, to.sums[n % A::MIXES] + n / A::MIXES * A::MIXES * 32) = pair(n);
}

// Where a thread finds what it merges, and where it publishes: a pair of dims of a head, or two pairs where there are more than
// threads.
template <class A, class G>
struct MergePlace {
  static constexpr int THREADS = CONSUMER_WARPS * WARP_LANES, PAIRS = A::GROUP * A::D / 2 <= THREADS ? 1 : 2, PARTS = A::D / 2 / PAIRS;  // of a head
  int head, part;
  u64* output;
  u64* lse;
  int sums;  // of the first warp, in bytes from this one's slice

  MergePlace() = default;
  // i: the thread's number, or that and a multiple of their number.
  __device__ __forceinline__ MergePlace(const Consumer<G>& consumer, const AttentionUnit<A>& unit, u64* outputs, u64* logarithms, int i)
      : head(i / PARTS), part(i % PARTS) {
    const int row = unit.split * A::HEADS + unit.head + head;
    output = outputs + (row * PARTS + part) * PAIRS;
    lse = logarithms + row * isa::LSE_STRIDE + part;
    sums = (A::sums_place(head, part * PAIRS / 4) + part * PAIRS % 4 * 2) * 4 - consumer.context.warp * G::slice_bytes;
  }

  // Has it worked out now, not where it is wanted.
  __device__ __forceinline__ void settle() { ptx::settle(output), ptx::settle(lse), ptx::settle(sums); }
};

// Merges the warps' sums and the new token at some dims, and publishes them. Of several splits each publishes its own output, and
// for each head the logarithm of its normaliser: -inf and zeros where it has no position.
template <class A, class G>
__device__ __forceinline__ void merge_warps(const Consumer<G>& consumer, const AttentionUnit<A>& unit, int splits, const MergePlace<A, G>& at) {
  constexpr int PAIRS = MergePlace<A, G>::PAIRS;
  auto& shared = consumer.context.shared.attention;
  const u32 epoch = consumer.context.epoch();
  SoftmaxState state[CONSUMER_WARPS];
  float2 sums[CONSUMER_WARPS][PAIRS];
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS; w++) state[w] = shared.state[w][at.head];
  const float score = shared.new_score[at.head];
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS; w++)
#pragma unroll
    for (int i = 0; i < PAIRS; i++) sums[w][i] = *behind<const float2>(consumer.slice, at.sums + w * G::slice_bytes + i * 8);
  u32 value[PAIRS], references = 0;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) value[i] = reinterpret_cast<const u32*>(shared.new_value)[at.part * PAIRS + i];
  float new_score = unit.newest ? score : ptx::minus_infinity(), reference = 0;
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS; w++) references |= __float_as_uint(state[w].reference);
  const bool alike = references == 0 && !(unit.newest && fabsf(score) > tile::FAR_SCORE);
  if (!alike) {
    // A warp without a position counts for nothing.
    reference = fmaxf(new_score, tile::LOWEST_SCORE);
#pragma unroll
    for (int w = 0; w < CONSUMER_WARPS; w++) reference = fmaxf(reference, state[w].sum > 0 ? state[w].reference : tile::LOWEST_SCORE);
#pragma unroll
    for (int w = 0; w < CONSUMER_WARPS; w++) {
      const float weight = state[w].sum > 0 ? ptx::exp2_approx(state[w].reference - reference) : 0.0f;
      state[w].sum *= weight;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) sums[w][i].x *= weight, sums[w][i].y *= weight;
    }
    new_score -= reference;
  }
  const float weight = ptx::exp2_approx(new_score);
  float sum = weight + sum_of<CONSUMER_WARPS>([&](int w) { return state[w].sum; });
  const float inverse = ptx::reciprocal_approx(fmaxf(sum, LEAST_SUM));
  const u64 logarithm = make_word(__float_as_uint(reference + ptx::log2_approx(sum)), epoch);
  u64 word[PAIRS];
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    const u32 v = unit.newest ? value[i] : 0;
    const float x = weight * ptx::low_bf16(v) + sum_of<CONSUMER_WARPS>([&](int w) { return sums[w][i].x; });
    const float y = weight * ptx::high_bf16(v) + sum_of<CONSUMER_WARPS>([&](int w) { return sums[w][i].y; });
    word[i] = make_word(ptx::pack_bf16(x * inverse, y * inverse), epoch);
  }
#pragma unroll
  for (int copy = 0; copy < A::OUTPUT_COPIES; copy++) {
    if (copy > 0 && splits > (A::MERGED ? isa::MERGED_SPLITS : 1)) break;  // partial results have one copy
    const int results = A::MERGED ? splits : 1;
    u64* output = at.output + copy * isa::copy_stride(results * A::OUTPUT_WORDS);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) ptx::store_relaxed_gpu(output + i, word[i]);
    if (splits > 1 && at.part < isa::LSE_WORDS)
      ptx::store_relaxed_gpu(at.lse + copy * isa::bf16_stride(results * A::HEADS * isa::LSE_WORDS), logarithm);
  }
}

// What does not depend on the new token is done while its words are on their way: a warp reads its first tiles, and each thread
// works out what it will merge.
template <class A, class G>
__device__ __forceinline__ void consume_attention(Consumer<G>& consumer, Instruction in) {
  using Place = MergePlace<A, G>;
  using Chunks = TileChunks<A, G>;
  constexpr int PLACES = (A::GROUP * Place::PARTS + Place::THREADS - 1) / Place::THREADS;  // of a thread
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
    LeavePlace<A> leave_place;
    int query_place;
    WarpTiles<A, G> tiles;
    attention_prologue(consumer, unit, NewTokenOperands<A>(context, in), [&] {
      range = TileRange<A>(unit, splits, context.position(), window);
      outputs = context.params.words + in[isa::attention::OUTPUT], logarithms = context.params.words + in[isa::attention::LSE_OUT];
      place = Place(consumer, unit, outputs, logarithms, consumer.thread());
      if constexpr (A::D <= 128) place.settle();  // wider heads have no registers to spare
      leave_place = LeavePlace<A>(context.lane);
      query_place = (context.lane / 4 * AttentionShared<G>::QUERY_STRIDE + context.lane % 4 * 8) * 2;
      ptx::settle(query_place);
      tiles = WarpTiles<A, G>(context, unit, range);
      tiles.read_first(consumer);
    });
    consumer.mark(Mark::INPUT);
    consumer.meet_after_poll();
    u32 told = context.told();  // looked at only later, for that takes a while
    consumer.mark(Mark::MET);
    if (tiles.any()) {
      const tile::QueryFragment<A::D> query(behind<const u16>(context.shared.attention.query, query_place), context.lane);
      tile::AttentionAccumulator<A::D> accumulator;
      tiles.add_first(consumer, query, accumulator);
      tiles.add_others(consumer, query, accumulator);
      leave_sums(consumer, unit, leave_place, {accumulator.reference, accumulator.sums[0]},
                 [&](int n) { return make_float2(accumulator.output[n][0], accumulator.output[n][1]); });
    } else {
      leave_sums(consumer, unit, leave_place, {0, 0}, [](int) { return make_float2(0, 0); });
    }
    const auto skip_the_rest = [&] { consumer.template skip_chunks<Chunks::HELD>(Chunks::of(range) - tiles.chunks_passed()); };
    if constexpr (!Chunks::WHOLE_ROUND) skip_the_rest();
    consumer.mark(Mark::DOTS);
    consumer.meet(told);
    told = context.told();
#pragma unroll
    for (int p = 0; p < PLACES; p++) {
      const int part = consumer.thread() + p * Place::THREADS;
      if (part >= unit.heads * Place::PARTS) continue;
      merge_warps(consumer, unit, splits, p == 0 ? place : Place(consumer, unit, outputs, logarithms, part));
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
