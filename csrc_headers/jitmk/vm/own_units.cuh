// MATVEC with a unit for each consumer warp: for short rows, of which a warp's registers hold a unit whole.
//
// Where all warps share a unit, they leave sums to the storer with each, which takes longer than their few products. Here
// they share the input instead: each fetches its slice, and they meet once. Then a warp has whole rows, and publishes them.
#pragma once
#include "jitmk/vm/dots.cuh"
#include "jitmk/vm/rows.cuh"

namespace jitmk::vm {

// All of a unit.
template <class M>
__device__ __forceinline__ void read_unit(const unsigned char* chunk, int lane, uint4 (&w)[CONSUMER_WARPS][M::BLOCKS]) {
#pragma unroll
  for (int s = 0; s < CONSUMER_WARPS; s++)
#pragma unroll
    for (int b = 0; b < M::BLOCKS; b++)
      if (s * M::BLOCKS + b < M::UNIT_BLOCKS) w[s][b] = reinterpret_cast<const uint4*>(chunk)[(s * M::BLOCKS + b) * WARP_LANES + lane];
}

// Leaves a warp's slice of the input, and a lane's share of its sum of squares, for all warps, which meet.
template <class M, class G>
__device__ __forceinline__ const SharedInput& share_input(Consumer<G>& consumer, uint2 mine, float square_sum) {
  const Context<G>& context = consumer.context;
  // Two by turns: who still reads one is not past the meeting after this, so nobody writes it before then.
  SharedInput& shared = context.shared.inputs.input[consumer.meeting()];
  shared.x[context.warp][context.lane] = mine;
  if constexpr (M::NORM) shared.squares[context.warp * WARP_LANES + context.lane] = square_sum;
  consumer.meet_after_poll();
  return shared;
}

// Warps take units in turn, each a chunk. They pass over the chunks of others without a look at their barriers, and the
// loader hands them back for those who do not read. See TileChunks, in attention_tiles.cuh, for what that asks of the ring;
// what the others have read by the meeting has landed for all.
template <class M, class G>
__device__ __forceinline__ void consume_own_units(Consumer<G>& consumer, Instruction in) {
  static_assert(M::CHUNKS == 1 && M::BLOCKS <= CHAINS, "a warp cannot hold a unit of so many columns");
  static_assert(CONSUMER_WARPS + G::Shared::MAX_WINDOW <= G::Shared::RING_CHUNKS, "the ring is too small for warps to pass over chunks");
  static_assert(2 * WARP_LANES * sizeof(float4) == sizeof(SharedInput::squares));
  const Context<G>& context = consumer.context;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const int copy = M::INPUT_COPIES > 1 ? context.sm() % M::INPUT_COPIES : 0;
  const u64* input = context.params.words + in[isa::matvec::INPUT] + copy * M::INPUT_STRIDE;
  const float* norm = M::NORM ? context.params.constants + in[isa::matvec::NORM] : nullptr;
  const Rows<M> rows(context, in);
  const int first = context.warp, lane = context.lane, row = lane & (UNIT_ROWS - 1);
  const auto row_of = [=](int u) { return (begin + u * stride) * UNIT_ROWS + row; };
  const auto inside = [=](int u) { return u < count && (M::ROWS % UNIT_ROWS == 0 || row_of(u) < M::ROWS); };
  consumer.mark(Mark::BEGIN);
  int passed = 0;  // chunks of this instruction
  uint4 w[CONSUMER_WARPS][M::BLOCKS];
  const auto read_own = [&](int u) {
    consumer.pass_chunks(u - passed);
    passed = u + 1;
    read_unit<M>(consumer.acquire_chunk(), lane, w);
    consumer.release_chunk();
  };
  if (first < count) {
    read_own(first);
  } else {
    // Registers that only a branch fills would be held from one instruction to the next.
#pragma unroll
    for (auto& slice : w)
#pragma unroll
      for (uint4& block : slice) block = make_uint4(0, 0, 0, 0);
  }
  EpilogueOperands<M> operands;
  if (inside(first)) rows.fetch(operands, row_of(first));
  u64* to = rows.word_of(row_of(first));
  ptx::settle(to);  // where it goes is known before it is there
  Input<M> mine(consumer.slice, lane);
  const float square_sum = fetch_prologue<M>(consumer, in, input, norm, mine);
  const SharedInput& shared = share_input<M>(consumer, mine[0], square_sum);
  uint2 x[CONSUMER_WARPS];
  float squares = 0;  // a lane's share of the whole
  if (first < count) {
#pragma unroll
    for (int s = 0; s < CONSUMER_WARPS; s++) x[s] = shared.x[s][lane];
    if constexpr (M::NORM) {
      const auto* of_all = reinterpret_cast<const float4*>(shared.squares);
      squares = sum(of_all[lane]) + sum(of_all[lane + WARP_LANES]);
    }
  }
#pragma unroll 1
  for (int u = first; u < count; u += CONSUMER_WARPS) {
    if (u != first) {
      read_own(u);
      if (inside(u)) rows.fetch(operands, row_of(u));
      to = rows.word_of(row_of(u));
    }
    Dots<M> dots;
    float all_squares = squares;
#pragma unroll
    for (int s = 0; s < CONSUMER_WARPS; s++) {
#pragma unroll
      for (int b = 0; b < M::BLOCKS; b++) {
        if (s * M::BLOCKS + b >= M::UNIT_BLOCKS) continue;
        if (s == 0)
          dots.multiply(b, w[s][b], x[s]);
        else
          dots.add(b, w[s][b], x[s]);
      }
      // Its five shuffles, one after the other, go between what has nothing to do with them.
      if (M::NORM && s < 5) all_squares += __shfl_xor_sync(ALL_LANES, all_squares, 1 << s);
    }
    const float scale = M::NORM ? ptx::rsqrt_approx(all_squares * (1.0f / M::COLUMNS) + M::NORM_EPS) : 1.0f;
    const float share = dots.share(lane);
    float parts[4];
#pragma unroll
    for (int i = 0; i < 4; i++) parts[i] = __shfl_sync(ALL_LANES, share, row * 4 + i);
    const float y = ((parts[0] + parts[1]) + (parts[2] + parts[3])) * scale + operands.bias;
    const bool wanted = inside(u);
    const float residual = rows.residual(context, operands, row_of(u), wanted);
    rows.publish(row_of(u), to, y, residual, wanted && lane < UNIT_ROWS);
  }
  consumer.mark(Mark::STORED);
  consumer.pass_chunks(count - passed);
  if (count > CONSUMER_WARPS) consumer.meet();  // so that here too all chunks have landed for all warps
  if constexpr (M::POST_SUM) publish_sum<M>(consumer, in);
}

}  // namespace jitmk::vm
