// Packed matrices, read by something else than the megakernel: where their blocks of 8 rows and 32 columns lie.
#pragma once
#include "jitmk/ptx/types.cuh"

namespace jitmk::prefill {

constexpr int BLOCK_BYTES = UNIT_ROWS * BLOCK_COLUMNS * 2;
constexpr int BLOCK_PIECES = BLOCK_BYTES / 16;      // 16 bytes a lane
constexpr int ROW_PIECES = BLOCK_COLUMNS * 2 / 16;  // of one row of a block
constexpr int PIECE_VALUES = 8;                     // bf16 values in 16 bytes
static_assert(BLOCK_PIECES == WARP_LANES, "a warp takes a block at a time");

// A packed matrix, or some of its units. `blocks` and `chunks` as MatrixLayout in Python has them.
struct Packed {
  const uint4* data;
  int rows, columns, blocks, chunks;

  __device__ __forceinline__ int unit_blocks() const { return chunks == 1 ? (columns + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS : CONSUMER_WARPS * blocks; }
  __device__ __forceinline__ int units() const { return (rows + UNIT_ROWS - 1) / UNIT_ROWS; }
};

// The chunk that holds a block: blocks [first, first + count) of every warp's slice.
struct Chunk {
  int first, count;
};

// Chunk c begins with block floor(blocks c / chunks), so c is the largest number with blocks c < chunks (block + 1).
__device__ __forceinline__ Chunk chunk_of(const Packed& m, int block) {
  const int c = ((block + 1) * m.chunks - 1) / m.blocks;
  const int first = m.blocks * c / m.chunks;
  return {first, m.blocks * (c + 1) / m.chunks - first};
}

// The blocks of a unit in the order in which they lie there: which columns each of them holds.
struct BlockWalk {
  Chunk chunk;
  int blocks, warp, block;

  // Starts at the `index`-th block of a unit.
  __device__ __forceinline__ BlockWalk(const Packed& m, int index) : chunk(chunk_of(m, index / CONSUMER_WARPS)), blocks(m.blocks) {
    const int inside = index - chunk.first * CONSUMER_WARPS;
    warp = inside / chunk.count;
    block = chunk.first + inside % chunk.count;
  }

  __device__ __forceinline__ int column() const { return (warp * blocks + block) * BLOCK_COLUMNS; }

  // To the next block of the same chunk.
  __device__ __forceinline__ void next() {
    if (++block == chunk.first + chunk.count) block = chunk.first, warp++;
  }
};

// Which 16 bytes hold the 8 values from `column` on, a multiple of 8.
__device__ __forceinline__ i64 piece_of(const Packed& m, int row, int column) {
  const int block_of_row = column / BLOCK_COLUMNS, warp = block_of_row / m.blocks, block = block_of_row % m.blocks;
  const Chunk chunk = chunk_of(m, block);
  const i64 index = static_cast<i64>(row / UNIT_ROWS) * m.unit_blocks() + chunk.first * CONSUMER_WARPS + warp * chunk.count + block - chunk.first;
  return index * BLOCK_PIECES + row % UNIT_ROWS * ROW_PIECES + column % BLOCK_COLUMNS / PIECE_VALUES;
}

// The 8 values of a piece, in the order of their columns.
__device__ __forceinline__ uint4 in_order(uint4 piece) { return make_uint4(piece.x, piece.z, piece.y, piece.w); }

// Packed to row-major. A warp reads 2 KB that lie together, so that four loads are on their way before the first store,
// and stores 64 bytes of each of 8 rows a block.
__device__ __forceinline__ void unpack(const Packed& m, uint4* to, int warp, int warps, int lane) {
  constexpr int TOGETHER = 4;  // divides the blocks of each of several chunks, of which each warp has as many
  static_assert(CONSUMER_WARPS % TOGETHER == 0, "a group of blocks would cross a chunk");
  const int blocks = m.unit_blocks(), groups = (blocks + TOGETHER - 1) / TOGETHER, row_pieces = m.columns / PIECE_VALUES;
  const int items = m.units() * groups;
  for (int item = warp; item < items; item += warps) {
    const int unit = item / groups, first = item % groups * TOGETHER, row = unit * UNIT_ROWS + lane / ROW_PIECES;
    const uint4* from = m.data + (static_cast<i64>(unit) * blocks + first) * BLOCK_PIECES + lane;
    uint4 pieces[TOGETHER] = {};
#pragma unroll
    for (int i = 0; i < TOGETHER; i++)
      if (first + i < blocks) pieces[i] = from[i * BLOCK_PIECES];
    BlockWalk walk(m, first);
#pragma unroll
    for (int i = 0; i < TOGETHER; i++) {
      const int column = walk.column() + lane % ROW_PIECES * PIECE_VALUES;
      if (row < m.rows && column < m.columns) to[static_cast<i64>(row) * row_pieces + column / PIECE_VALUES] = in_order(pieces[i]);
      walk.next();
    }
  }
}

}  // namespace jitmk::prefill
