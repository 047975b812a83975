// What norms need to know of a vector that is spread over lanes and warps.
#pragma once
#include "jitmk/vm/quads.cuh"

namespace jitmk::vm {

// RMS: x / sqrt(mean of x^2 + eps) (Zhang and Sennrich 2019, arXiv:1910.07467).
// LAYER: (x - mean) / sqrt(variance + eps) (Ba, Kiros and Hinton 2016, arXiv:1607.06450).
enum class NormKind { NONE, RMS, LAYER };

// The sum over a warp, in every lane, with the same bits there.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int distance = WARP_LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
  return x;
}

// What a norm does to a value, before weight and bias.
struct Normaliser {
  float mean, scale;

  __device__ __forceinline__ float4 operator()(float4 x) const { return multiply(subtract(x, mean), scale); }
};

// The normaliser of `count` values; `squares`: the sum of their squared distances from the mean (RMS: from 0).
__device__ __forceinline__ Normaliser normaliser(float mean, float squares, float count, float eps) {
  return {mean, ptx::rsqrt_approx(squares * (1.0f / count) + eps)};
}

__device__ __forceinline__ float sum(const float (&x)[CONSUMER_WARPS]) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

// The normaliser of the values of all warps, `count` together (Chan, Golub and LeVeque 1983, "Algorithms for Computing the
// Sample Variance"). Nothing is lost where the mean is large beside the deviation, as it would be in mean(x^2) - mean(x)^2.
template <NormKind KIND>
__device__ __forceinline__ Normaliser pool(const WarpMoments& of, float count, float eps) {
  float mean = 0, squares[CONSUMER_WARPS];
  if constexpr (KIND == NormKind::LAYER) {
    float sums[CONSUMER_WARPS];
#pragma unroll
    for (int w = 0; w < CONSUMER_WARPS; w++) sums[w] = of.count[w] * of.mean[w];
    mean = sum(sums) * (1.0f / count);
  }
#pragma unroll
  for (int w = 0; w < CONSUMER_WARPS; w++) {
    squares[w] = of.squares[w];
    if constexpr (KIND == NormKind::LAYER) squares[w] += of.count[w] * (of.mean[w] - mean) * (of.mean[w] - mean);
  }
  return normaliser(mean, sum(squares), count, eps);
}

// The moments of a warp's values: of the QUADS * 4 of each lane, those of `value(i)` with `inside(i)`, the others being
// zeros; `count` of a warp.
template <NormKind KIND, int QUADS, class Value, class Inside>
__device__ __forceinline__ Moments warp_moments(float count, Value value, Inside inside) {
  float mean = 0, squares = 0;
  if constexpr (KIND == NormKind::LAYER) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < QUADS; i++) total += sum(value(i));
    total = warp_sum(total);
    if (count > 0) mean = total * ptx::reciprocal_approx(count);
  }
#pragma unroll
  for (int i = 0; i < QUADS; i++) {
    if constexpr (KIND == NormKind::LAYER)
      squares += inside(i) ? sum_of_squares(subtract(value(i), mean)) : 0.0f;
    else
      squares += sum_of_squares(value(i));
  }
  return {count, mean, warp_sum(squares)};
}

// The norm of a vector of `count` values of which each consumer warp knows its part. The warps meet once. polled: whether
// they have looked for words since they last met.
template <NormKind KIND, class G>
__device__ __forceinline__ Normaliser exchange_moments(Consumer<G>& consumer, Moments mine, float count, float eps, bool polled = true) {
  const Context<G>& context = consumer.context;
  // Two sets by turns: who still reads one is not past the meeting after this, so nobody writes it before then.
  auto& moments = context.shared.moments[consumer.meeting()];
  if (context.lane == 0) {
    moments.squares[context.warp] = mine.squares;
    if constexpr (KIND == NormKind::LAYER) moments.count[context.warp] = mine.count, moments.mean[context.warp] = mine.mean;
  }
  if (polled)
    consumer.meet_after_poll();
  else
    consumer.meet();
  return pool<KIND>(moments, count, eps);
}

// The norm of a vector that is dealt to all consumer threads.
template <NormKind KIND, class G, class Quads>
__device__ __forceinline__ Normaliser block_normaliser(Consumer<G>& consumer, Quads quads, const float4 (&x)[Quads::PER_LANE], float eps) {
  const Moments mine = warp_moments<KIND, Quads::PER_LANE>(quads.count(), [&x](int i) { return x[i]; }, [quads](int i) { return quads.inside(i); });
  return exchange_moments<KIND>(consumer, mine, 4 * Quads::QUADS, eps);
}

}  // namespace jitmk::vm
