// EMBED: residual = scale * table[token] + positions[position]. The storer does it alone; nothing streams.
#pragma once
#include "jitmk/ptx/convert.cuh"
#include "jitmk/vm/roles.cuh"

namespace jitmk::vm {

// Config is rendered from EmbedConfig, with BLOCKS, CHUNKS and UNIT_BLOCKS of the table's packed form, if it is the LM head (TIED).
template <class Config>
struct Embed : Config {
  static constexpr int OUTPUT_STRIDE = isa::bf16_stride(Config::HIDDEN_SIZE / 2), RESIDUAL_STRIDE = isa::copy_stride(Config::HIDDEN_SIZE);
  static constexpr bool PLAIN = Config::SCALE == 1 && !Config::POSITIONS;  // the table's bf16 is the output's
};

// Byte offset of table[row][column] in a packed matrix: unit, chunk, warp, block, row of 8, column of 32. Of every 8 columns, 2
// and 3 have changed places with 4 and 5.
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
  const i64 block_index = static_cast<i64>(row / UNIT_ROWS) * E::UNIT_BLOCKS + first * CONSUMER_WARPS + warp * blocks + (block - first);
  const int place = (column & ~6) | (column & 2) << 1 | (column & 4) >> 1;
  return block_index * isa::BLOCK_BYTES + (row % UNIT_ROWS) * isa::BLOCK_COLUMNS * 2 + place % isa::BLOCK_COLUMNS * 2;
}

template <class E, class G>
__device__ __forceinline__ void store_embed(Storer<G>& storer, Instruction in) {
  const Context<G>& context = storer.context;
  const Params& p = context.params;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const unsigned char* table = p.weights + static_cast<i64>(in[isa::embed::TABLE]) * isa::GRAIN_BYTES;
  const u32* positions = nullptr;
  if constexpr (E::POSITIONS)
    positions = reinterpret_cast<const u32*>(p.weights + static_cast<i64>(in[isa::embed::POSITIONS]) * isa::GRAIN_BYTES) +
                static_cast<i64>(context.position()) * (E::HIDDEN_SIZE / 2);
  u64* output = p.words + in[isa::embed::OUTPUT];
  u64* residual = p.words + in[isa::embed::RESIDUAL_OUT];
  const u32 epoch = context.epoch();
  constexpr int PAIRS = UNIT_ROWS / 2;  // of columns, in a unit
  // An SM has a unit or two, for which the compiler would write this four times.
#pragma unroll 1
  for (int i = context.lane; i < count * PAIRS; i += WARP_LANES) {
    const int column = (begin + i / PAIRS * stride) * UNIT_ROWS + i % PAIRS * 2;
    if (column >= E::HIDDEN_SIZE) continue;
    i64 offset;
    if constexpr (E::TIED)
      offset = packed_offset<E>(storer.token, column);
    else
      offset = (static_cast<i64>(storer.token) * E::HIDDEN_SIZE + column) * 2;
    const u32 x = *reinterpret_cast<const u32*>(table + offset);
    float low = E::SCALE * ptx::low_bf16(x), high = E::SCALE * ptx::high_bf16(x);
    if constexpr (E::POSITIONS) low += ptx::low_bf16(positions[column / 2]), high += ptx::high_bf16(positions[column / 2]);
    const u64 word = make_word(E::PLAIN ? x : ptx::pack_bf16(low, high), epoch);
#pragma unroll
    for (int copy = 0; copy < E::OUTPUT_COPIES; copy++) ptx::store_relaxed_gpu(output + copy * E::OUTPUT_STRIDE + isa::bf16_word(column / 2), word);
#pragma unroll
    for (int copy = 0; copy < E::RESIDUAL_COPIES; copy++) {
      ptx::store_relaxed_gpu(residual + copy * E::RESIDUAL_STRIDE + column, make_word(__float_as_uint(low), epoch));
      ptx::store_relaxed_gpu(residual + copy * E::RESIDUAL_STRIDE + column + 1, make_word(__float_as_uint(high), epoch));
    }
  }
  __syncwarp();
}

}  // namespace jitmk::vm
