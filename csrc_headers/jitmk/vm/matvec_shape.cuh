// What a matvec is: its epilogues, and how its units lie in chunks and go to consumer warps.
#pragma once
#include "jitmk/vm/activation.cuh"
#include "jitmk/vm/prologue.cuh"

namespace jitmk::vm {

constexpr int EARLY_BATCH = 4;  // chunks that consumers fetch at once before their input is there
// Blocks that they fetch before it, 4 registers each. For sm_120 the compiler gives no warp more than all would have alike.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 1200
constexpr int EARLY_BLOCKS = 12;
#else
constexpr int EARLY_BLOCKS = 16;
#endif

enum class Epilogue { STORE, RESIDUAL, ACTIVATED, GATED, LOGITS };

// One matvec. Config is rendered from MatvecConfig, with BLOCKS, 32-column blocks in a warp's slice, and CHUNKS and UNIT_BLOCKS
// of a unit: in one of one chunk only the blocks that have columns, of which the last warps may miss some.
template <class Config>
struct Matvec : Config {
  using Config::BLOCKS, Config::CHUNKS, Config::COLUMNS, Config::EPILOGUE, Config::ROWS;
  // How a unit lies in chunks, and how much of an instruction consumers fetch early; storers are told of no chunks.
  static constexpr int PARTS = CHUNKS > 0 ? CHUNKS : 1;
  static constexpr bool EVEN = BLOCKS % PARTS == 0;                // all chunks have the same number of blocks
  static constexpr int MAX_BLOCKS = (BLOCKS + PARTS - 1) / PARTS;  // of a chunk
  static constexpr bool NORM = Config::PROLOGUE == Prologue::RMS;  // 1/rms is applied to the dot products
  static constexpr bool NEEDS_ALL = Config::PROLOGUE == Prologue::LAYER || Config::POST != NormKind::NONE;
  static constexpr int CHUNK_BLOCKS = MAX_BLOCKS > 0 ? MAX_BLOCKS : 1;
  // More of wide units, of which fewer fit the ring. A prologue that needs the whole vector needs the registers itself.
  static constexpr int EARLY_CHUNKS = PARTS >= 3 && !NEEDS_ALL ? 2 * EARLY_BLOCKS / CHUNK_BLOCKS : (EARLY_BLOCKS + CHUNK_BLOCKS - 1) / CHUNK_BLOCKS;
  static constexpr int MOST_UNITS = EARLY_CHUNKS / PARTS < PARTIAL_BATCH ? EARLY_CHUNKS / PARTS : PARTIAL_BATCH;
  static constexpr int EARLY_UNITS = PARTS < EARLY_CHUNKS && !Config::LONE_UNITS ? MOST_UNITS : 1;
  static constexpr int EARLY = PARTS < EARLY_CHUNKS ? PARTS : EARLY_CHUNKS;  // chunks of each of these
  static constexpr int UNITS = (ROWS + UNIT_ROWS - 1) / UNIT_ROWS;
  static constexpr int SLICE_COLUMNS = BLOCKS * isa::BLOCK_COLUMNS;
  // Long units run in a loop over their chunks, if it finds each alike: less code to compile and to fetch.
  static constexpr bool LOOPED = Config::INPUT_IN_SHARED && EVEN && CHUNKS > 4 && MAX_BLOCKS % CHAINS == 0;
  // Of the sum behind a post-norm, published by a unit.
  static constexpr int SUM_VALUES = Config::POST_SUM ? (COLUMNS + UNITS - 1) / (UNITS > 0 ? UNITS : 1) : 0;
  static constexpr int UNIT_BYTES = Config::UNIT_BLOCKS * isa::BLOCK_BYTES;
  static constexpr int INPUT_STRIDE = isa::copy_stride((COLUMNS + 1) / 2) * Config::INPUT_SPREAD;
  static constexpr int OUTPUT_STRIDE = isa::bf16_stride(EPILOGUE == Epilogue::GATED ? ROWS / 4 : (ROWS + 1) / 2);
  static constexpr int RESIDUAL_STRIDE = isa::copy_stride(ROWS);
  static_assert(COLUMNS % 16 == 0, "columns must be a multiple of 16");
  static_assert(Config::POST == NormKind::NONE || EPILOGUE != Epilogue::RESIDUAL, "one operand cannot be two residuals");
  static_assert(Config::POST == NormKind::NONE || Config::PROLOGUE != Prologue::MERGE, "one operand cannot be two inputs");

  __device__ static constexpr int first_block(int chunk) { return EVEN ? MAX_BLOCKS * chunk : BLOCKS * chunk / PARTS; }
  // Of a warp's slice; and bytes of all warps' together.
  __device__ static constexpr int chunk_blocks(int chunk) { return EVEN ? MAX_BLOCKS : first_block(chunk + 1) - first_block(chunk); }
  __device__ static constexpr int chunk_bytes(int chunk) {
    return CHUNKS == 1 ? UNIT_BYTES : chunk_blocks(chunk) * CONSUMER_WARPS * isa::BLOCK_BYTES;
  }
};

}  // namespace jitmk::vm
