// A token a CTA: the residual, what a block adds to it, and the norms before and after.
#pragma once
#include "jitmk/prefill/packed.cuh"
#include "jitmk/prefill/values.cuh"

namespace jitmk::prefill {

// RMS: w x / sqrt(mean x^2 + eps); else LayerNorm, w (x - mean) / sqrt(variance + eps).
template <int HIDDEN_, int THREADS_, bool RMS_>
struct RowShape {
  static constexpr int HIDDEN = HIDDEN_, THREADS = THREADS_;
  static constexpr bool RMS = RMS_;
  static constexpr int PIECES = (HIDDEN / PIECE_VALUES + THREADS - 1) / THREADS;  // a thread
  static_assert(HIDDEN % PIECE_VALUES == 0, "rows are taken 8 values at a time");
};

// A row of HIDDEN values, spread over the threads of a CTA in pieces of 8; threads past its end hold zeros.
template <class R>
struct Row {
  Eight piece[R::PIECES];

  static __device__ __forceinline__ int column(int i) { return (i * R::THREADS + threadIdx.x) * PIECE_VALUES; }

  template <class Load>
  __device__ __forceinline__ void load(Load load) {
#pragma unroll
    for (int i = 0; i < R::PIECES; i++) piece[i] = column(i) < R::HIDDEN ? load(column(i)) : Eight{};
  }

  template <class Use>
  __device__ __forceinline__ void each(Use use) {
#pragma unroll
    for (int i = 0; i < R::PIECES; i++)
      if (column(i) < R::HIDDEN) use(piece[i].at, column(i));
  }

  __device__ __forceinline__ float sum(float* shared) {
    float total = 0;
    each([&](const float* x, int) {
      for (int j = 0; j < PIECE_VALUES; j++) total += x[j];
    });
    return block_sum<R::THREADS>(total, shared);
  }

  __device__ __forceinline__ float square_sum(float mean, float* shared) {
    float total = 0;
    each([&](const float* x, int) {
      for (int j = 0; j < PIECE_VALUES; j++) total += (x[j] - mean) * (x[j] - mean);
    });
    return block_sum<R::THREADS>(total, shared);
  }

  // The mean is taken off before squares are summed, so that a large one costs no digits.
  __device__ __forceinline__ void normalise(const float* weight, const float* bias, float eps, float* shared) {
    const float mean = R::RMS ? 0.0f : sum(shared) / R::HIDDEN;
    const float scale = 1.0f / sqrtf(square_sum(mean, shared) / R::HIDDEN + eps);
    each([&](float* x, int column) {
      const Eight w = load_fp32(weight + column);
      const Eight b = bias == nullptr ? Eight{} : load_fp32(bias + column);
      for (int j = 0; j < PIECE_VALUES; j++) x[j] = (x[j] - mean) * scale * w.at[j] + b.at[j];
    });
  }
};

// residual += scale * post_norm(block); output = norm(residual), rounded. Each part is left out where its pointer is null:
// `block`, its post-norm, `output`, its norm.
template <class R>
__device__ __forceinline__ void add_norm(const AddNormParams& p) {
  __shared__ float shared[WARP_LANES];
  for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const i64 begin = static_cast<i64>(row) * R::HIDDEN;
    Row<R> x;
    x.load([&](int column) { return load_fp32(p.residual + begin + column); });
    if (p.block != nullptr) {
      Row<R> y;
      y.load([&](int column) { return load_bf16(p.block + begin + column); });
      if (p.post_weight != nullptr) y.normalise(p.post_weight, p.post_bias, p.eps, shared);
#pragma unroll
      for (int i = 0; i < R::PIECES; i++)
        for (int j = 0; j < PIECE_VALUES; j++) x.piece[i].at[j] += p.scale * y.piece[i].at[j];
#pragma unroll
      for (int i = 0; i < R::PIECES; i++)
        if (x.column(i) < R::HIDDEN) store_fp32(p.residual + begin + x.column(i), x.piece[i]);
    }
    if (p.output == nullptr) continue;
    if (p.weight != nullptr) x.normalise(p.weight, p.bias, p.eps, shared);
#pragma unroll
    for (int i = 0; i < R::PIECES; i++)
      if (x.column(i) < R::HIDDEN) store_bf16(p.output + begin + x.column(i), x.piece[i]);
  }
}

// residual = scale * table[id] + positions[start + row]; the table is packed, or row-major where `chunks` is 0.
template <class R>
__device__ __forceinline__ void embed(const EmbedParams& p) {
  const Packed table{p.table, p.vocabulary, R::HIDDEN, p.blocks, p.chunks};
  for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const i64 id = p.ids[row];
    Row<R> x;
    x.load([&](int column) {
      if (p.chunks == 0) return widen(p.table[(id * R::HIDDEN + column) / PIECE_VALUES]);
      return widen(in_order(p.table[piece_of(table, static_cast<int>(id), column)]));
    });
#pragma unroll
    for (int i = 0; i < R::PIECES; i++) {
      const int column = x.column(i);
      if (column >= R::HIDDEN) continue;
      Eight position{};
      if (p.positions != nullptr) position = load_bf16(p.positions + static_cast<i64>(p.start + row) * R::HIDDEN + column);
      for (int j = 0; j < PIECE_VALUES; j++) x.piece[i].at[j] = x.piece[i].at[j] * p.scale + position.at[j];
      store_fp32(p.residual + static_cast<i64>(row) * R::HIDDEN + column, x.piece[i]);
    }
  }
}

}  // namespace jitmk::prefill
