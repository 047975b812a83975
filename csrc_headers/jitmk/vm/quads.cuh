// Vectors between phases, four values at a time: two words of bf16, or four of fp32.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

__device__ __forceinline__ float sum(float4 x) { return (x.x + x.y) + (x.z + x.w); }
__device__ __forceinline__ float sum_of_squares(float4 x) { return (x.x * x.x + x.y * x.y) + (x.z * x.z + x.w * x.w); }
__device__ __forceinline__ float4 subtract(float4 x, float y) { return make_float4(x.x - y, x.y - y, x.z - y, x.w - y); }
__device__ __forceinline__ float4 multiply(float4 x, float4 y) { return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w); }
__device__ __forceinline__ float4 multiply(float4 x, float y) { return make_float4(x.x * y, x.y * y, x.z * y, x.w * y); }
__device__ __forceinline__ float4 add(float4 x, float4 y) { return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w); }
__device__ __forceinline__ float4 unpack_bf16(uint2 x) {
  return make_float4(ptx::low_bf16(x.x), ptx::high_bf16(x.x), ptx::low_bf16(x.y), ptx::high_bf16(x.y));
}
__device__ __forceinline__ uint2 pack_bf16(float4 x) { return make_uint2(ptx::pack_bf16(x.x, x.y), ptx::pack_bf16(x.z, x.w)); }
__device__ __forceinline__ float4 unpack_fp32(uint2 low, uint2 high) {
  return make_float4(__uint_as_float(low.x), __uint_as_float(low.y), __uint_as_float(high.x), __uint_as_float(high.y));
}

// COUNT pairs of words a lane, polled until all carry the step's epoch. `address(i)` is that of a pair, or null where there
// is nothing to wait for, which reads as zeros. Every lane of the warp calls this.
template <int COUNT, class G, class Address>
__device__ __forceinline__ void wait_pairs(const Context<G>& context, Address address, Wait wait, u32 index, uint2 (&payload)[COUNT]) {
  const u32 epoch = context.epoch();
  ptx::Pair64 w[COUNT];
  const auto ask = [&] {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const u64* from = address(i);
      w[i] = {make_word(0, epoch), make_word(0, epoch)};
      if (from != nullptr) w[i] = ptx::load_relaxed_gpu_pair(from);
    }
  };
  const auto have_come = [&] {
    bool ready = true;
#pragma unroll
    for (int i = 0; i < COUNT; i++) ready &= word_epoch(w[i].x) == epoch & word_epoch(w[i].y) == epoch;
    return ready;
  };
  poll(context, wait, index, ask, have_come);
#pragma unroll
  for (int i = 0; i < COUNT; i++) payload[i] = make_uint2(word_payload(w[i].x), word_payload(w[i].y));
}

// A quad of bf16, and one of fp32. Every lane of the warp calls these; those without `wanted` get zeros.
template <class G>
__device__ __forceinline__ float4 wait_bf16(const Context<G>& context, const u64* words, int quad, bool wanted, Wait wait) {
  uint2 payload[1];
  wait_pairs(context, [=](int) { return wanted ? words + isa::bf16_word(2 * quad) : nullptr; }, wait, 2 * quad, payload);
  return unpack_bf16(payload[0]);
}
template <class G>
__device__ __forceinline__ float4 wait_fp32(const Context<G>& context, const u64* words, int quad, bool wanted, Wait wait) {
  uint2 payload[2];
  wait_pairs(context, [=](int i) { return wanted ? words + 4 * quad + 2 * i : nullptr; }, wait, 4 * quad, payload);
  return unpack_fp32(payload[0], payload[1]);
}

// Publishes a quad in all COPIES, which lie `stride` words apart.
template <int COPIES>
__device__ __forceinline__ void publish_bf16(u64* words, int stride, int quad, float4 x, u32 epoch) {
  const uint2 packed = pack_bf16(x);
#pragma unroll
  for (int copy = 0; copy < COPIES; copy++) {
    u64* to = words + copy * stride + isa::bf16_word(2 * quad);
    ptx::store_relaxed_gpu(to, make_word(packed.x, epoch));
    ptx::store_relaxed_gpu(to + 1, make_word(packed.y, epoch));
  }
}
template <int COPIES>
__device__ __forceinline__ void publish_fp32(u64* words, int stride, int quad, float4 x, u32 epoch) {
#pragma unroll
  for (int copy = 0; copy < COPIES; copy++) {
    u64* to = words + copy * stride + 4 * quad;
    ptx::store_relaxed_gpu(to, make_word(__float_as_uint(x.x), epoch));
    ptx::store_relaxed_gpu(to + 1, make_word(__float_as_uint(x.y), epoch));
    ptx::store_relaxed_gpu(to + 2, make_word(__float_as_uint(x.z), epoch));
    ptx::store_relaxed_gpu(to + 3, make_word(__float_as_uint(x.w), epoch));
  }
}

constexpr int ELEMENTWISE_QUADS = isa::ELEMENTWISE_VALUES / 4;  // of a unit of the opcodes that go value by value

// A vector of VALUES dealt to all consumer threads.
template <int VALUES>
struct BlockQuads {
  static constexpr int QUADS = VALUES / 4, PER_LANE = (QUADS + CONSUMER_THREADS - 1) / CONSUMER_THREADS;
  static_assert(VALUES % 4 == 0, "vectors are taken four values at a time");
  int warp, lane;

  __device__ __forceinline__ int global(int i) const { return i * CONSUMER_THREADS + warp * WARP_LANES + lane; }
  __device__ __forceinline__ bool inside(int i) const { return global(i) < QUADS; }
  // Values of this warp.
  __device__ __forceinline__ float count() const {
    int quads = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) quads += max(0, min(WARP_LANES, QUADS - i * CONSUMER_THREADS - warp * WARP_LANES));
    return static_cast<float>(4 * quads);
  }

  // This lane's quads of those from `first` on, in x.
  template <class G>
  __device__ __forceinline__ void fetch(const Context<G>& context, const u64* words, int first, Wait wait, float4 (&x)[PER_LANE]) const {
    constexpr int GROUP = PER_LANE <= 8 ? PER_LANE : 8;
#pragma unroll
    for (int g = 0; g < PER_LANE; g += GROUP) {
      uint2 payload[GROUP];
      wait_pairs(
          context, [=](int i) { return g + i < PER_LANE && inside(g + i) ? words + isa::bf16_word(2 * (first + global(g + i))) : nullptr; }, wait,
          2 * (first + global(g)), payload);
#pragma unroll
      for (int i = 0; i < GROUP; i++)
        if (g + i < PER_LANE) x[g + i] = unpack_bf16(payload[i]);
    }
  }
};

// Calls body(quad, whether there is such a quad) for the quads of an instruction's units, each on one lane; all lanes of a
// warp are in the same unit, and call it equally often.
template <class G, class Body>
__device__ __forceinline__ void for_each_quad(const Consumer<G>& consumer, Instruction in, int values, Body body) {
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  for (int i = consumer.thread(); i < count * ELEMENTWISE_QUADS; i += CONSUMER_THREADS) {
    const int quad = (begin + i / ELEMENTWISE_QUADS * stride) * ELEMENTWISE_QUADS + i % ELEMENTWISE_QUADS;
    body(quad, quad * 4 < values);
  }
}

}  // namespace jitmk::vm
