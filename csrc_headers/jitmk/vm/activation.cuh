// Nonlinearities: of the MLP, and the soft cap of scores and logits.
#pragma once
#include "jitmk/ptx/convert.cuh"

namespace jitmk::vm {

enum class Activation { NONE, SILU, GELU, GELU_TANH, RELU };

constexpr float LOG2_E = 1.44269504f;

// e^x, 0 where that is no normal number.
__device__ __forceinline__ float exp_approx(float x) { return ptx::exp2_approx(x * LOG2_E); }

// NaN stays NaN, whatever F.
template <Activation F>
__device__ __forceinline__ float activate(float x) {
  if constexpr (F == Activation::SILU) {
    return __fdividef(x, 1.0f + exp_approx(-x));
  } else if constexpr (F == Activation::GELU) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
  } else if constexpr (F == Activation::GELU_TANH) {
    // x (1 + tanh u) / 2 = x / (1 + e^-2u), which loses nothing where tanh u is near -1.
    const float u = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return __fdividef(x, 1.0f + exp_approx(-2.0f * u));
  } else if constexpr (F == Activation::RELU) {
    return x < 0.0f ? 0.0f : x;
  } else {
    static_assert(F == Activation::NONE, "no device code for this activation");
    return x;
  }
}

// unit * cap * tanh(x * scale / cap). The error of tanh is absolute, about 2^-23, so that of the result is cap times that. An
// infinite exponential is as good as any: its reciprocal is 0.
__device__ __forceinline__ float soft_cap(float x, float cap, float scale = 1, float unit = 1) {
  return unit * cap - 2 * unit * cap * ptx::reciprocal_approx(1.0f + ptx::exp2_approx(x * (2 * LOG2_E * scale / cap)));
}

}  // namespace jitmk::vm
