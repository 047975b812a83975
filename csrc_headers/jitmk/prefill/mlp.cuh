// The activation between the two halves of the MLP.
#pragma once
#include "jitmk/prefill/packed.cuh"
#include "jitmk/prefill/values.cuh"
#include "jitmk/vm/activation.cuh"

namespace jitmk::prefill {

// output = f(gate) * up where gate and up alternate in the input (GATED), else f(input): 8 values of the output a thread.
template <vm::Activation F, bool GATED>
__device__ __forceinline__ void activate_rows(const ActivateParams& p, i64 thread, i64 threads) {
  for (i64 i = thread; i < p.pieces; i += threads) {
    Eight y;
    if constexpr (GATED) {
      const Eight low = load_bf16(p.input + i * 2 * PIECE_VALUES), high = load_bf16(p.input + (i * 2 + 1) * PIECE_VALUES);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        y.at[j] = vm::activate<F>(low.at[2 * j]) * low.at[2 * j + 1];
        y.at[4 + j] = vm::activate<F>(high.at[2 * j]) * high.at[2 * j + 1];
      }
    } else {
      const Eight x = load_bf16(p.input + i * PIECE_VALUES);
#pragma unroll
      for (int j = 0; j < PIECE_VALUES; j++) y.at[j] = vm::activate<F>(x.at[j]);
    }
    store_bf16(p.output + i * PIECE_VALUES, y);
  }
}

}  // namespace jitmk::prefill
