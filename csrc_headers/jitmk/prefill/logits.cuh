// The LM head for one token, straight from its packed form: every weight is read once, sums are fp32.
#pragma once
#include "jitmk/prefill/packed.cuh"
#include "jitmk/prefill/values.cuh"

namespace jitmk::prefill {

// logits = W x: a unit of 8 rows a warp, a row on 4 lanes.
__device__ __forceinline__ void head_logits(const LogitsParams& p, int warp, int warps, int lane) {
  const Packed head{p.head, p.vocabulary, p.columns, p.blocks, p.chunks};
  const int blocks = head.unit_blocks();
  for (int unit = warp; unit < head.units(); unit += warps) {
    const uint4* from = head.data + static_cast<i64>(unit) * blocks * BLOCK_PIECES + lane;
    float sum = 0;
    // A warp's blocks of one chunk lie together, and each of several chunks has as many for each of the 8 warps.
    for (int index = 0; index < blocks; index += CONSUMER_WARPS) {
      uint4 pieces[CONSUMER_WARPS] = {};
#pragma unroll
      for (int i = 0; i < CONSUMER_WARPS; i++)
        if (index + i < blocks) pieces[i] = from[(index + i) * BLOCK_PIECES];
      BlockWalk walk(head, index);
#pragma unroll
      for (int i = 0; i < CONSUMER_WARPS; i++) {
        const int column = walk.column() + lane % ROW_PIECES * PIECE_VALUES;
        if (column < p.columns) {
          const Eight w = widen(in_order(pieces[i])), x = load_fp32(p.input + column);
#pragma unroll
          for (int j = 0; j < PIECE_VALUES; j++) sum += w.at[j] * x.at[j];
        }
        walk.next();
      }
    }
    for (int distance = ROW_PIECES / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    const int row = unit * UNIT_ROWS + lane / ROW_PIECES;
    if (lane % ROW_PIECES == 0 && row < p.vocabulary) p.logits[row] = sum;
  }
}

}  // namespace jitmk::prefill
