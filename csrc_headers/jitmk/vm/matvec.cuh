// MATVEC: y = epilogue(W prologue(x)).
#pragma once
#include "jitmk/ptx/mma.cuh"
#include "jitmk/vm/activation.cuh"
#include "jitmk/vm/candidate.cuh"
#include "jitmk/vm/prologue.cuh"
#include "jitmk/vm/sample_filter.cuh"

namespace jitmk::vm {

enum class Epilogue { STORE, RESIDUAL, ACTIVATED, GATED, LOGITS };

// One matvec. Config is rendered from MatvecConfig, with BLOCKS, 32-column blocks in a warp's slice, and CHUNKS of a unit.
template <class Config>
struct Matvec : Config {
  using Config::BLOCKS, Config::CHUNKS, Config::COLUMNS, Config::EPILOGUE, Config::ROWS;
  static constexpr bool NORM = Config::PROLOGUE == Prologue::RMS;  // 1/rms is applied to the dot products
  static constexpr bool NEEDS_ALL = Config::PROLOGUE == Prologue::LAYER || Config::POST != NormKind::NONE;
  static constexpr int UNITS = (ROWS + UNIT_ROWS - 1) / UNIT_ROWS;
  static constexpr int SLICE_COLUMNS = BLOCKS * isa::BLOCK_COLUMNS;
  // Of the sum behind a post-norm, published by a unit.
  static constexpr int SUM_VALUES = Config::POST_SUM ? (COLUMNS + UNITS - 1) / (UNITS > 0 ? UNITS : 1) : 0;
  static constexpr int UNIT_BYTES = BLOCKS * CONSUMER_WARPS * isa::BLOCK_BYTES;
  static constexpr int INPUT_STRIDE = isa::copy_stride((COLUMNS + 1) / 2);
  static constexpr int OUTPUT_STRIDE = isa::copy_stride(EPILOGUE == Epilogue::GATED ? ROWS / 4 : (ROWS + 1) / 2);
  static constexpr int RESIDUAL_STRIDE = isa::copy_stride(ROWS);
  static_assert(COLUMNS % 16 == 0, "columns must be a multiple of 16");
  static_assert(Config::OUTPUT_COPIES <= 4 && Config::RESIDUAL_COPIES <= 4, "a warp publishes at most four copies at once");
  static_assert(Config::POST == NormKind::NONE || EPILOGUE != Epilogue::RESIDUAL, "one operand cannot be two residuals");

  __device__ static constexpr int first_block(int chunk) { return BLOCKS * chunk / CHUNKS; }
  __device__ static constexpr int chunk_blocks(int chunk) { return first_block(chunk + 1) - first_block(chunk); }
};

template <class M, class G>
__device__ __forceinline__ void load_matvec(Loader<G>& loader, Instruction in) {
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const unsigned char* weights = loader.context.params.weights + static_cast<i64>(in[isa::matvec::WEIGHTS]) * isa::GRAIN_BYTES;
  for (int i = 0; i < count; i++) {
    const unsigned char* from = weights + static_cast<i64>(begin + i * stride) * M::UNIT_BYTES;
    for (int c = 0; c < M::CHUNKS; c++) {
      const int bytes = M::chunk_blocks(c) * CONSUMER_WARPS * isa::BLOCK_BYTES;
      loader.load(from, bytes);
      from += bytes;
    }
  }
  loader.mark();
}

template <class M, class G>
__device__ __forceinline__ void consume_matvec(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const int count = in[isa::UNIT_COUNT];
  const int copy = M::INPUT_COPIES > 1 ? context.sm() % M::INPUT_COPIES : 0;
  const u64* input = context.params.words + in[isa::matvec::INPUT] + copy * M::INPUT_STRIDE;
  const float* norm = M::NORM ? context.params.constants + in[isa::matvec::NORM] : nullptr;
  consumer.mark(Mark::BEGIN);
  float square_sum;
  if constexpr (M::NEEDS_ALL)
    square_sum = fetch_normed_input<M>(consumer, in, input);
  else
    square_sum = fetch_input<M>(consumer, input, norm);
  consumer.mark(Mark::INPUT);
  if (context.warp == 0) consumer.mark(Mark::FIRST_INPUT);
  const auto* x_lane = reinterpret_cast<const uint4*>(consumer.slice) + context.lane % 4;
  constexpr int MAX_BLOCKS = (M::BLOCKS + M::CHUNKS - 1) / M::CHUNKS;
  constexpr bool EVEN = M::BLOCKS % M::CHUNKS == 0;
  constexpr int UNROLLED = EVEN && M::CHUNKS > 4 ? 2 : M::CHUNKS;  // long units run in a loop: less code to compile and to fetch
  constexpr bool KEEP = M::CHUNKS == 1;  // a small slice stays in registers
  uint4 x[MAX_BLOCKS];
  if constexpr (KEEP) {
#pragma unroll
    for (int b = 0; b < M::BLOCKS; b++) x[b] = x_lane[b * 4];
  }
  for (int u = 0; u < count; u++) {
    float low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
    Partial& partial = consumer.acquire_partial();  // free for long, as a rule
#pragma unroll UNROLLED
    for (int c = 0; c < M::CHUNKS; c++) {
      const int first = EVEN ? c * MAX_BLOCKS : M::first_block(c), blocks = EVEN ? MAX_BLOCKS : M::chunk_blocks(c);
      uint4 w[MAX_BLOCKS];
      if constexpr (!KEEP) {
#pragma unroll
        for (int b = 0; b < blocks; b++) x[b] = x_lane[(first + b) * 4];
      }
      const auto* weights = reinterpret_cast<const uint4*>(consumer.acquire_chunk()) + context.warp * blocks * WARP_LANES + context.lane;
#pragma unroll
      for (int b = 0; b < blocks; b++) w[b] = weights[b * WARP_LANES];
#pragma unroll
      for (int b = 0; b < blocks; b++) {
        ptx::mma_m16n8k16(low, x[b], w[b].x, w[b].y);
        ptx::mma_m16n8k16(high, x[b], w[b].z, w[b].w);
      }
      if (c + 1 < M::CHUNKS) consumer.release_chunk();
    }
    if (M::NORM && u == 0) {  // only now: the first dots should not wait for it
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) square_sum += __shfl_xor_sync(ALL_LANES, square_sum, distance);
    }
    if (context.lane < 4) *reinterpret_cast<float2*>(&partial.row[context.lane * 2]) = make_float2(low[0] + high[2], low[1] + high[3]);
    if (M::NORM && context.lane == 4) partial.square_sum = square_sum;
    consumer.release_partial();
    consumer.release_chunk();  // the last one only now: somebody waits for the sums, nobody for the slot
  }
  consumer.mark(Mark::DOTS);
  // Only the LM head has candidates; its consumers run the same code as others.
  if (context.params.filters && in[isa::matvec::CANDIDATE] >= 0) consumer.await_filters();
}

// The copies of the word that holds rows (2i, 2i+1) of a vector: lanes 8c..8c+7 hold a unit for copy c.
template <class M>
__device__ __forceinline__ void publish_pair(u64* output, int lane, int word, float low, float high, u32 epoch) {
  const int copy = lane / UNIT_ROWS;
  if (copy < M::OUTPUT_COPIES) ptx::store_relaxed_gpu(output + copy * M::OUTPUT_STRIDE + word, make_word(ptx::pack_bf16(low, high), epoch));
}

template <class M, class G>
__device__ __forceinline__ void store_matvec(Storer<G>& storer, Instruction in) {
  const Context<G>& context = storer.context;
  const Params& p = context.params;
  constexpr int SHARES = WARP_LANES / UNIT_ROWS;  // lanes that have the same row
  const int lane = context.lane, row = lane % UNIT_ROWS, share = lane / UNIT_ROWS;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  u64* output = p.words + in[isa::matvec::OUTPUT];
  const u32 epoch = context.epoch();
  const float* bias = M::BIAS ? p.constants + in[isa::matvec::BIAS] : nullptr;
  const u64* residual_in = nullptr;
  u64* residual_out = nullptr;
  if constexpr (M::EPILOGUE == Epilogue::RESIDUAL) {
    residual_in = p.words + in[isa::matvec::RESIDUAL_IN];
    residual_out = p.words + in[isa::matvec::RESIDUAL_OUT];
  }
  Candidate best;
  float noises = 0, largest = ptx::minus_infinity();
  const LogitShare share_of_logits{p.filter_values, p.filter_values + M::UNITS * UNIT_ROWS, begin, stride, count * UNIT_ROWS};
  float scale = 1;
  for (int i = 0; i < count; i++) {
    const int unit = begin + i * stride, global_row = unit * UNIT_ROWS + row;
    const bool inside = M::ROWS % UNIT_ROWS == 0 || global_row < M::ROWS;
    float addend = M::BIAS && inside ? bias[global_row] : 0.0f;
    float residual = 0;
    if constexpr (M::EPILOGUE == Epilogue::RESIDUAL) {
      const u64* word[1] = {residual_in + global_row};
      u32 payload[1];
      wait_words(context, word, inside, epoch, Wait::RESIDUAL, global_row, payload);
      residual = __uint_as_float(payload[0]);
    }
    float noise = 0;
    if constexpr (M::EPILOGUE == Epilogue::LOGITS) {
      // Four lanes have the same row, so noise is drawn for four units at once: it is a long chain of instructions, and a
      // narrow unit streams in less than a microsecond.
      if (i % SHARES == 0) noises = gumbel_of_row(p, context.position() + 1, begin + (i + share) * stride, row);
      noise = __shfl_sync(ALL_LANES, noises, i % SHARES * UNIT_ROWS + row);
    }
    const Partial* partials = storer.acquire_partials();
    float y = partials[share].row[row] + partials[share + 4].row[row];
    if (M::NORM && i == 0) {
      float square_sum = partials[row].square_sum;
#pragma unroll
      for (int distance = 4; distance > 0; distance /= 2) square_sum += __shfl_xor_sync(ALL_LANES, square_sum, distance);
      scale = 1.0f / sqrtf(square_sum * (1.0f / M::COLUMNS) + M::NORM_EPS);
    }
    y += __shfl_xor_sync(ALL_LANES, y, 8);
    y += __shfl_xor_sync(ALL_LANES, y, 16);
    y = y * scale + addend;
    if constexpr (M::EPILOGUE == Epilogue::STORE) {
      const float next = __shfl_down_sync(ALL_LANES, y, 1);
      if (inside && row % 2 == 0) publish_pair<M>(output, lane, global_row / 2, y, next, epoch);
    } else if constexpr (M::EPILOGUE == Epilogue::RESIDUAL) {
      y = M::SCALE * y + residual;
      const float next = __shfl_down_sync(ALL_LANES, y, 1);
      if (inside && row % 2 == 0) publish_pair<M>(output, lane, global_row / 2, y, next, epoch);
      const int copy = M::RESIDUAL_COPIES > 1 ? 3 - share : 0;
      if (inside && share >= 4 - M::RESIDUAL_COPIES)
        ptx::store_relaxed_gpu(residual_out + copy * M::RESIDUAL_STRIDE + global_row, make_word(__float_as_uint(y), epoch));
    } else if constexpr (M::EPILOGUE == Epilogue::ACTIVATED) {
      const float activated = activate<M::ACTIVATION>(y), next = __shfl_down_sync(ALL_LANES, activated, 1);
      if (inside && row % 2 == 0) publish_pair<M>(output, lane, global_row / 2, activated, next, epoch);
    } else if constexpr (M::EPILOGUE == Epilogue::GATED) {
      const float up = __shfl_down_sync(ALL_LANES, y, 1);
      const float activated = activate<M::ACTIVATION>(y) * up;
      const float next = __shfl_down_sync(ALL_LANES, activated, 2);
      if (inside && row % 4 == 0) publish_pair<M>(output, lane, global_row / 4, activated, next, epoch);
    } else {
      y *= M::SCALE;
      if constexpr (M::SOFT_CAP != 0) y = soft_cap(y, M::SOFT_CAP);
      if (inside && share == 0 && p.logits != nullptr) p.logits[static_cast<i64>(context.step) * M::ROWS + global_row] = y;
      const float key = y * p.inverse_temperature + noise;
      if (inside) best.offer(key, global_row);
      if (p.filters) {
        const float logit = inside ? y : ptx::minus_infinity();
        largest = fmaxf(largest, logit);
        if (share == 0) share_of_logits.put(global_row, logit, key);
      }
    }
    storer.release_partials();
  }
  context.mark(Mark::STORED);
  if constexpr (M::EPILOGUE == Epilogue::LOGITS) {
    const int slot = in[isa::matvec::CANDIDATE], word = 2 * slot;
    if (p.filters) {
      best = filter_share(context, share_of_logits, context.shared.filter_bins(), slot, largest);
      context.arrive(&context.shared.filtered);
    } else {
      best.reduce<UNIT_ROWS>();
    }
    if (lane == 0) ptx::store_relaxed_gpu(output + word, make_word(__float_as_uint(best.key), epoch));
    if (lane == 1) ptx::store_relaxed_gpu(output + word + 1, make_word(best.token, epoch));
  }
}

}  // namespace jitmk::vm
