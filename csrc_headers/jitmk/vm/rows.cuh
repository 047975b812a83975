// The epilogues of a matvec, but for that of the LM head: what becomes of a unit's rows, and how they are published.
#pragma once
#include "jitmk/vm/matvec_shape.cuh"

namespace jitmk::vm {

// What a row needs beside its dot product: its bias, and its word of the residual, which as a rule has long been there.
template <class M>
struct EpilogueOperands {
  float bias = 0;
  u64 residual = 0;
};

// Where rows come from and go to. A lane has row `lane % UNIT_ROWS` of some unit; every lane of the warp calls these.
template <class M>
struct Rows {
  u64* output;
  const float* biases = nullptr;
  const u64* residual_in = nullptr;
  u64* residual_out = nullptr;
  u32 epoch;

  template <class G>
  __device__ __forceinline__ Rows(const Context<G>& context, Instruction in) : epoch(context.epoch()) {
    const Params& p = context.params;
    output = p.words + in[isa::matvec::OUTPUT];
    if constexpr (M::BIAS) biases = p.constants + in[isa::matvec::BIAS];
    if constexpr (M::EPILOGUE == Epilogue::RESIDUAL) {
      residual_in = p.words + in[isa::matvec::RESIDUAL_IN];
      residual_out = p.words + in[isa::matvec::RESIDUAL_OUT];
    }
  }

  __device__ __forceinline__ void fetch(EpilogueOperands<M>& operands, int row) const {
    if (M::BIAS) operands.bias = biases[row];
    if (M::EPILOGUE == Epilogue::RESIDUAL) operands.residual = ptx::load_relaxed_gpu(residual_in + row);
  }

  // The residual that is added to a row, if it is `wanted` and M adds one; 0 else.
  template <class G>
  __device__ __forceinline__ float residual(const Context<G>& context, const EpilogueOperands<M>& operands, int row, bool wanted) const {
    if constexpr (M::EPILOGUE != Epilogue::RESIDUAL) return 0;
    u32 payload[1] = {word_payload(operands.residual)};
    if (!__all_sync(ALL_LANES, !wanted || word_epoch(operands.residual) == epoch)) {
      const u64* word[1] = {residual_in + row};
      wait_words(context, word, wanted, epoch, Wait::RESIDUAL, row, payload);
    }
    return __uint_as_float(payload[0]);
  }

  // Where the word of the output lies that has a row.
  __device__ __forceinline__ u64* word_of(int row) const {
    return output + isa::bf16_word(static_cast<u32>(row) / (M::EPILOGUE == Epilogue::GATED ? 4 : 2));
  }

  // y: the row's dot product, with scale and bias. to: its word. active: whether the lane has one.
  __device__ __forceinline__ void publish(int row, u64* to, float y, float residual, bool active) const {
    if constexpr (M::EPILOGUE == Epilogue::RESIDUAL) {
      y = M::SCALE * y + residual;
      publish_pair(row, to, y, active);
      if (active) {
#pragma unroll
        for (int copy = 0; copy < M::RESIDUAL_COPIES; copy++)
          ptx::store_relaxed_gpu(residual_out + copy * M::RESIDUAL_STRIDE + row, make_word(__float_as_uint(y), epoch));
      }
    } else if constexpr (M::EPILOGUE == Epilogue::GATED) {
      const float up = __shfl_down_sync(ALL_LANES, y, 1);
      const float activated = activate<M::ACTIVATION>(y) * up;
      const float neighbour = __shfl_down_sync(ALL_LANES, activated, 2);
      if (active && row % 4 == 0) publish_word(to, activated, neighbour);
    } else if constexpr (M::EPILOGUE == Epilogue::ACTIVATED) {
      publish_pair(row, to, activate<M::ACTIVATION>(y), active);
    } else {
      static_assert(M::EPILOGUE == Epilogue::STORE, "logits are not published");
      publish_pair(row, to, y, active);
    }
  }

 private:
  __device__ __forceinline__ void publish_pair(int row, u64* to, float y, bool active) const {
    const float neighbour = __shfl_down_sync(ALL_LANES, y, 1);
    if (active && row % 2 == 0) publish_word(to, y, neighbour);
  }

  // The copies of the word that holds two neighbouring values of the output.
  __device__ __forceinline__ void publish_word(u64* to, float low, float high) const {
    const u64 w = make_word(ptx::pack_bf16(low, high), epoch);
#pragma unroll
    for (int copy = 0; copy < M::OUTPUT_COPIES; copy++) ptx::store_relaxed_gpu(to + copy * M::OUTPUT_STRIDE, w);
  }
};

}  // namespace jitmk::vm
