// KV_APPEND: key and value of the new token go to the cache, as they are.
#pragma once
#include "jitmk/vm/head.cuh"

namespace jitmk::vm {

// K is rendered from KvAppendConfig. One warp stores the key, one the value.
template <class K, class G>
__device__ __forceinline__ void consume_kv_append(Consumer<G>& consumer, Instruction in) {
  constexpr int D = K::HEAD_DIM, HEAD_WORDS = isa::bf16_word(D / 2);
  using Quads = HeadQuads<D, 0>;
  const Context<G>& context = consumer.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE], layer = in[isa::kv_append::LAYER];
  const u64* keys = p.words + in[isa::kv_append::INPUT] + K::HEADS * HEAD_WORDS;
  const u64* values = p.words + in[isa::kv_append::VALUE_INPUT] + (K::HEADS + K::KV_HEADS) * HEAD_WORDS;
  u64* output = p.words + in[isa::kv_append::OUTPUT];
  const int position = context.position(), slot = position % tile::TILE_POSITIONS;
  consumer.mark(Mark::BEGIN);
  for (int u = 0; u < count; u++) {
    const int kv_head = begin + u * stride;
    if (context.warp < 2) {
      const bool is_key = context.warp == 0;
      u16* cache = tile_of<D>(p, layer, kv_head, position);
      float4 x[Quads::PER_LANE];
      fetch_head<Quads>(context, (is_key ? keys : values) + kv_head * HEAD_WORDS, Wait::QKV, kv_head * HEAD_WORDS, x);
#pragma unroll
      for (int i = 0; i < Quads::PER_LANE; i++) {
        const int quad = context.lane + i * WARP_LANES;
        if (quad >= Quads::QUADS) continue;
        store_quad<Quads>(is_key, cache, slot, quad, pack_quad(x[i]));
      }
    }
    consumer.report_append();
    consumer.meet();
    if (consumer.thread() == 0) ptx::store_relaxed_gpu(output + kv_head, make_word(__float_as_uint(static_cast<float>(position)), context.epoch()));
  }
  consumer.mark(Mark::STORED);
}

// As after attention: the loaders of the next step are told.
template <class K, class G>
__device__ __forceinline__ void store_kv_append(Storer<G>& storer, Instruction in) {
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE], layer = in[isa::kv_append::LAYER];
  for (int u = 0; u < count; u++) storer.release_kv(storer.context.params.kv_ready + layer * K::KV_HEADS + begin + u * stride);
}

}  // namespace jitmk::vm
