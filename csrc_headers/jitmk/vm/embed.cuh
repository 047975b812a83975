// EMBED: residual = table[token]. The storer does it alone; nothing streams.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

// BLOCKS, CHUNKS: the packed form of the table when it is the LM head (PACKED); unused otherwise.
template <int HIDDEN_, bool PACKED_, int BLOCKS_, int CHUNKS_, int OUTPUT_COPIES_>
struct Embed {
  static constexpr int HIDDEN = HIDDEN_, BLOCKS = BLOCKS_, CHUNKS = CHUNKS_, OUTPUT_COPIES = OUTPUT_COPIES_;
  static constexpr bool PACKED = PACKED_;
  static constexpr int OUTPUT_STRIDE = isa::copy_stride(HIDDEN / 2);
};

// Byte offset of table[row][column] in a packed matrix: unit, chunk, warp, block, row of 8, column of 32.
template <class E>
__device__ __forceinline__ i64 packed_offset(int row, int column) {
  constexpr int SLICE = E::BLOCKS * isa::BLOCK_COLUMNS;
  const int warp = column / SLICE, block = column % SLICE / isa::BLOCK_COLUMNS;
  int first = 0, blocks = 0;
#pragma unroll
  for (int c = 0; c < E::CHUNKS; c++) {
    const int begin = E::BLOCKS * c / E::CHUNKS, end = E::BLOCKS * (c + 1) / E::CHUNKS;
    if (block >= begin && block < end) first = begin, blocks = end - begin;
  }
  const i64 block_index = static_cast<i64>(row / UNIT_ROWS) * E::BLOCKS * CONSUMER_WARPS + first * CONSUMER_WARPS + warp * blocks + (block - first);
  return block_index * isa::BLOCK_BYTES + (row % UNIT_ROWS) * isa::BLOCK_COLUMNS * 2 + column % isa::BLOCK_COLUMNS * 2;
}

template <class E, class G>
__device__ __forceinline__ void store_embed(Storer<G>& storer, Instruction in) {
  const Context<G>& context = storer.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const unsigned char* table = p.weights + static_cast<i64>(in[isa::embed::TABLE]) * isa::GRAIN_BYTES;
  u64* output = p.words + in[isa::embed::OUTPUT];
  u64* residual = p.words + in[isa::embed::RESIDUAL_OUT];
  const u32 epoch = context.epoch();
  constexpr int PAIRS = UNIT_ROWS / 2;  // of columns, in a unit
  for (int i = context.lane; i < count * PAIRS; i += WARP_LANES) {
    const int column = (begin + i / PAIRS * stride) * UNIT_ROWS + i % PAIRS * 2;
    if (column >= E::HIDDEN) continue;
    i64 offset;
    if constexpr (E::PACKED)
      offset = packed_offset<E>(storer.token, column);
    else
      offset = (static_cast<i64>(storer.token) * E::HIDDEN + column) * 2;
    const u32 x = *reinterpret_cast<const u32*>(table + offset);
#pragma unroll
    for (int copy = 0; copy < E::OUTPUT_COPIES; copy++) ptx::store_relaxed_gpu(output + copy * E::OUTPUT_STRIDE + column / 2, make_word(x, epoch));
    ptx::store_relaxed_gpu(residual + column, make_word(__float_as_uint(ptx::low_bf16(x)), epoch));
    ptx::store_relaxed_gpu(residual + column + 1, make_word(__float_as_uint(ptx::high_bf16(x)), epoch));
  }
  __syncwarp();
}

}  // namespace jitmk::vm
