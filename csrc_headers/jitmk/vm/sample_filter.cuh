// Sampling filters: top-k, then top-p, and min-p. What they leave, and the integers in which probabilities are counted,
// are defined in jitmk/reference/ops/sample_filter.py.
//
// The vocabulary stays where it is: spread over the SMs. The storer of every SM that has a part of the LM head looks for
// the thresholds together with the others. Each counts its own logits in bins, the counts are added up over the SMs, and
// all go on in the bin that holds the threshold, 16 times finer with every round. An SM that has few logits left there keeps
// them in registers. Then each offers the best key that is left in its own part, and SAMPLE chooses among the candidates as
// ever.
//
// NOTE: an instruction of the LM head so waits for the others of its phase. A queue may hold one of them at most
// (schedule/verify.py): a second one would be waited for by the first.
#pragma once
#include "jitmk/vm/candidate.cuh"
#include "jitmk/vm/shared.cuh"

namespace jitmk::vm {

constexpr int FILTER_BINS = isa::FILTER_BINS;
constexpr int FILTER_BIN_BITS = 4;
static_assert(FILTER_BINS == 1 << FILTER_BIN_BITS && 2 * FILTER_BINS == WARP_LANES, "lanes 0..15 have a bin's count, lanes 16..31 its weight");

// Counts floats from the largest down: greater for smaller logits, equal for equal ones (0 and -0 are not).
__device__ __forceinline__ u32 depth_of(float logit) {
  const u32 bits = __float_as_uint(logit);
  return bits >> 31 ? bits : 0x7fffffffu - bits;
}
constexpr u32 DEPTH_OF_SMALLEST = 0xff7fffffu;  // of the smallest finite number; -inf lies below

// By how many powers of two a token is less probable than the most probable one.
__device__ __forceinline__ float drop_of(float logit, float largest, float scale) { return logit == largest ? 0.0f : (largest - logit) * scale; }

// 2^(31 - drop), rounded down. Every operation rounds by itself, as in Python.
__device__ __forceinline__ u32 weight_of(float drop) {
  drop = fminf(drop, 32.0f);
  const int octave = static_cast<int>(drop);
  const float fraction = drop - static_cast<float>(octave);
  float power = -0.00094490364f;
  power = __fadd_rn(__fmul_rn(power, fraction), 0.0092057986f);
  power = __fadd_rn(__fmul_rn(power, fraction), -0.05529736f);
  power = __fadd_rn(__fmul_rn(power, fraction), 0.24018015f);
  power = __fadd_rn(__fmul_rn(power, fraction), -0.6931437f);
  power = __fadd_rn(__fmul_rn(power, fraction), 1.0f);
  return static_cast<u32>(power * __uint_as_float(static_cast<u32>(127 + 31 - octave) << 23));
}

// The logits and keys of an instruction's units, in global memory: the warp that reads them has written them.
struct LogitShare {
  static constexpr int BATCH = 4;  // loads in flight per lane; all that is done with a row is in the code as often

  float *logits, *keys;  // [vocabulary, rounded up to whole units]; past the vocabulary there is -inf
  int begin, stride, rows;

  __device__ __forceinline__ int row(int i) const { return (begin + i / UNIT_ROWS * stride) * UNIT_ROWS + i % UNIT_ROWS; }

  // What a lane may offer of a unit. A logit that is no number can never be chosen; 0 and -0 are one.
  __device__ __forceinline__ void put(int row, float logit, float key) const {
    logits[row] = logit == logit ? logit + 0.0f : ptx::minus_infinity();
    keys[row] = key;
  }

  // Calls visit(index of this lane's first row, logits of every 32nd row from there on) until all rows had their turn;
  // rows that are not there have the logit -inf. Lanes call together.
  template <class Visit>
  __device__ __forceinline__ void each(int lane, Visit visit) const {
    for (int batch = 0; __any_sync(ALL_LANES, batch < rows); batch += BATCH * WARP_LANES) {
      const int first = batch + lane;
      float logit[BATCH];
#pragma unroll
      for (int b = 0; b < BATCH; b++) {
        const int i = first + b * WARP_LANES;
        logit[b] = i < rows ? logits[row(i)] : ptx::minus_infinity();
      }
      visit(first, logit);
    }
  }
};

__device__ __forceinline__ float largest_of_warp(float value) {
#pragma unroll
  for (int distance = WARP_LANES / 2; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
  return value;
}

// What the SMs tell each other: first the largest logit of each, as words; then, in rounds, sums over all of them.
//
// A sum is 8 bytes that vouch for themselves, as a word does: an SM adds its value and, in the high bits, 1 to the number
// of those that have added theirs. Nothing is ever cleared. What counts is the difference to what stood there before,
// and that is known: nobody adds to a round's sums before all have added theirs to the round before (or published their
// largest logit), so until this SM does so, the next round's sums are at rest, and it reads them.
template <class G>
class FilterExchange {
 public:
  static constexpr int ARRIVALS_SHIFT = 53;  // room for 2047 SMs, and for 2^22 tokens of the greatest weight
  static constexpr u64 VALUE_MASK = (1ull << ARRIVALS_SHIFT) - 1;
  static constexpr int LINE_WORDS = 16, LINE_SUMS = LINE_WORDS * WARP_LANES / isa::FILTER_ROUND_WORDS;

  __device__ __forceinline__ explicit FilterExchange(const Context<G>& context)
      : sums_(context.params.filter_sums + context.lane / LINE_SUMS * LINE_WORDS + context.lane % LINE_SUMS) {
    look_ahead();
  }

  // The largest of all lanes' values on all SMs, each of which has a slot of its own.
  __device__ __forceinline__ float largest(const Context<G>& context, int slot, float value) {
    constexpr int BATCH = 8;
    const Params& p = context.params;
    const u32 epoch = context.epoch();
    value = largest_of_warp(value);
    settle(context);
    if (context.lane == 0) ptx::store_relaxed_gpu(p.filter_words + slot, make_word(__float_as_uint(value), epoch));
    for (int batch = 0; batch < p.shares; batch += BATCH * WARP_LANES) {
      const int first = batch + context.lane;
      u64 w[BATCH];
      const auto ask = [&] {
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
          const int i = first + b * WARP_LANES;
          w[b] = i < p.shares ? ptx::load_relaxed_gpu(p.filter_words + i) : make_word(__float_as_uint(value), epoch);
        }
      };
      const auto have_come = [&] {
        bool ready = true;
#pragma unroll
        for (int b = 0; b < BATCH; b++) ready &= word_epoch(w[b]) == epoch;
        return ready;
      };
      poll(context, Wait::FILTER, 0, ask, have_come);
#pragma unroll
      for (int b = 0; b < BATCH; b++) value = fmaxf(value, __uint_as_float(word_payload(w[b])));
    }
    advance();
    return largest_of_warp(value);
  }

  // Reads the next round's sums. Called well before `sum`, so that nobody waits for them.
  __device__ __forceinline__ void look_ahead() {
    ahead_ = ptx::load_relaxed_gpu(sums_);
    again_ = ptx::load_relaxed_gpu(sums_);
  }

  // This round's sum of each lane's value over all SMs.
  __device__ __forceinline__ u64 sum(const Context<G>& context, u64 value) {
    u64* sums = sums_ - isa::FILTER_ROUND_WORDS;  // look_ahead is one round ahead
    settle(context);
    ptx::add_relaxed_gpu(sums, 1ull << ARRIVALS_SHIFT | value);
    u64 added;
    const auto ask = [&] { added = ptx::load_relaxed_gpu(sums) - before_; };
    poll(context, Wait::FILTER, round_, ask, [&] { return added >> ARRIVALS_SHIFT == context.params.shares; });
    advance();
    return added & VALUE_MASK;
  }

 private:
  // What was read ahead is here: from now on the others may add to it.
  __device__ __forceinline__ void settle(const Context<G>& context) {
    while (!__all_sync(ALL_LANES, ahead_ == again_)) {
      context.leave_if_told();
      look_ahead();
    }
  }
  __device__ __forceinline__ void advance() {
    before_ = ahead_;
    sums_ += isa::FILTER_ROUND_WORDS;
    round_++;
  }

  u64* sums_;  // this lane's, of the next round
  u64 before_ = 0, ahead_, again_;
  int round_ = 0;
};

// A search for a threshold: depths from `first` to `last` are still in question.
struct DepthRange {
  u32 first, last;

  // Depths of a bin: 2 to the power of this.
  __device__ __forceinline__ int shift() const {
    const int bits = WARP_LANES - __clz(last - first);
    return bits > FILTER_BIN_BITS ? bits - FILTER_BIN_BITS : 0;
  }
  __device__ __forceinline__ bool holds(u32 depth) const { return depth >= first && depth <= last; }
  __device__ __forceinline__ DepthRange narrowed(int bin) const {
    const u32 begin = first + (static_cast<u32>(bin) << shift());
    return {begin, begin + min(last - begin, (1u << shift()) - 1)};
  }
};

// What is measured of the tokens in a bin, beside their number.
struct Weigher {
  bool active;
  float largest, scale;

  __device__ __forceinline__ u32 operator()(float logit) const { return active ? weight_of(drop_of(logit, largest, scale)) : 0; }
};

// The logits of the share that are still in a range, once there are no more of them than a warp has lanes: one in each.
struct FewLogits {
  float logit = ptx::minus_infinity();

  FewLogits() = default;
  // list: in shared memory, WARP_LANES of them.
  __device__ __forceinline__ FewLogits(const LogitShare& share, DepthRange range, float* list, int lane) {
    int length = 0;
    share.each(lane, [&](int, const float (&logit)[LogitShare::BATCH]) {
#pragma unroll
      for (int b = 0; b < LogitShare::BATCH; b++) {
        const bool held = range.holds(depth_of(logit[b]));
        const u32 holders = __ballot_sync(ALL_LANES, held);
        if (held) list[length + __popc(holders & ((1u << lane) - 1))] = logit[b];
        length += __popc(holders);
      }
    });
    __syncwarp();
    if (lane < length) logit = list[lane];
    __syncwarp();
  }

  // As count_bins, one logit after the other.
  __device__ __forceinline__ u64 count(DepthRange range, Weigher weigh, int lane) const {
    const u32 depth = depth_of(logit), bin = (depth - range.first) >> range.shift(), weight = weigh(logit);
    u64 sum = 0;
    for (u32 left = __ballot_sync(ALL_LANES, range.holds(depth)); left != 0;) {
      const int next = WARP_LANES - 1 - __clz(left);
      left ^= 1u << next;
      const u32 of_bin = __shfl_sync(ALL_LANES, bin, next), weighing = __shfl_sync(ALL_LANES, weight, next);
      if (lane % FILTER_BINS == of_bin) sum += lane < FILTER_BINS ? 1 : weighing;
    }
    return sum;
  }
};

// How many logits of the share lie in each bin (in lanes 0..15), and what they weigh together (in lanes 16..31). Every
// lane counts in a column of `bins` [FILTER_BINS][WARP_LANES] of its own: the number in the high bits, the weight below.
__device__ __forceinline__ u64 count_bins(const LogitShare& share, DepthRange range, Weigher weigh, u64* bins, int lane) {
  constexpr int NUMBER_SHIFT = 48;  // room for 65535 logits a lane
  const int shift = range.shift();
#pragma unroll
  for (int bin = 0; bin < FILTER_BINS; bin++) bins[bin * WARP_LANES + lane] = 0;
  share.each(lane, [&](int, const float (&logit)[LogitShare::BATCH]) {
#pragma unroll
    for (int b = 0; b < LogitShare::BATCH; b++) {
      const u32 depth = depth_of(logit[b]);
      if (range.holds(depth)) bins[((depth - range.first) >> shift) * WARP_LANES + lane] += 1ull << NUMBER_SHIFT | weigh(logit[b]);
    }
  });
  __syncwarp();
  const int bin = lane % FILTER_BINS, half = lane - bin;
  u64 number = 0, weight = 0;
#pragma unroll 4
  for (int i = 0; i < FILTER_BINS; i++) {
    const u64 column = bins[bin * WARP_LANES + half + (bin + i) % FILTER_BINS];  // no two lanes at one bank
    number += column >> NUMBER_SHIFT;
    weight += column & ((1ull << NUMBER_SHIFT) - 1);
  }
  __syncwarp();  // the columns may be cleared from here on
  number += __shfl_xor_sync(ALL_LANES, number, FILTER_BINS);
  weight += __shfl_xor_sync(ALL_LANES, weight, FILTER_BINS);
  return lane < FILTER_BINS ? number : weight;
}

// The depth down to which tokens are left: those than which the larger ones, by number or by weight, are less than the
// target. By weight, the target is `part` of what all in the range weigh.
template <class G>
__device__ __forceinline__ u32 find_threshold(const Context<G>& context, FilterExchange<G>& exchange, const LogitShare& share, DepthRange range,
                                              Weigher weigh, u64* bins, u64 target, double part) {
  const int lane = context.lane, bin = lane % FILTER_BINS;
  u64 larger = 0;             // than those in the range
  u64 left = WARP_LANES + 1;  // of the share, in the range: at first more than a few
  FewLogits few;
  bool kept = false;
  while (true) {
    exchange.look_ahead();
    if (!kept && __any_sync(ALL_LANES, left <= WARP_LANES)) few = FewLogits(share, range, reinterpret_cast<float*>(bins), lane), kept = true;
    const u64 own = kept ? few.count(range, weigh, lane) : count_bins(share, range, weigh, bins, lane);
    const u64 sum = exchange.sum(context, own);
    const u64 number = __shfl_sync(ALL_LANES, sum, bin), measure = __shfl_sync(ALL_LANES, sum, weigh.active ? bin + FILTER_BINS : bin);
    u64 through = measure;  // of this bin and of those above it
#pragma unroll
    for (int distance = 1; distance < FILTER_BINS; distance *= 2) {
      const u64 other = __shfl_up_sync(ALL_LANES, through, distance, FILTER_BINS);
      if (bin >= distance) through += other;
    }
    const u64 all = __shfl_sync(ALL_LANES, through, FILTER_BINS - 1);
    if (target == 0) target = static_cast<u64>(ceil(part * static_cast<double>(all)));
    const u64 above = larger + through - measure;
    // The last bin in which there is a token with less than the target above it; the largest of all is one.
    const u32 open = __ballot_sync(ALL_LANES, number > 0 && above < target) & ((1u << FILTER_BINS) - 1);
    const int found = WARP_LANES - 1 - __clz(open);
    const u64 tokens = __shfl_sync(ALL_LANES, number, found);
    larger = __shfl_sync(ALL_LANES, above, found);
    left = __shfl_sync(ALL_LANES, own, found);
    const bool finest = range.shift() == 0;
    range = range.narrowed(found);
    if (__all_sync(ALL_LANES, finest || tokens == 1 || (!weigh.active && larger + tokens <= target))) return range.last;
  }
}

// The best candidate that the filters leave in this SM's share, in every lane.
//
// bins: FILTER_BINS * WARP_LANES in shared memory. slot: the instruction's own. largest: of the share's logits.
template <class G>
__device__ __forceinline__ Candidate filter_share(const Context<G>& context, const LogitShare& share, u64* bins, int slot, float largest) {
  const Params& p = context.params;
  const int lane = context.lane;
  FilterExchange<G> exchange(context);
  largest = exchange.largest(context, slot, largest) + 0.0f;  // 0 where it is -0
  Candidate best;
  if (__all_sync(ALL_LANES, largest == ptx::minus_infinity())) return best;
  DepthRange range{depth_of(largest), DEPTH_OF_SMALLEST};
#pragma unroll 1
  for (int by_weight = 0; by_weight < 2; by_weight++) {  // top-k, then top-p of what it leaves
    if (by_weight ? p.top_p >= 1 : p.top_k == 0) continue;
    const Weigher weigh{by_weight != 0, largest, p.drop_scale};
    range.last = find_threshold(context, exchange, share, range, weigh, bins, by_weight ? 0 : p.top_k, p.top_p);
  }
  share.each(lane, [&](int first, const float (&logit)[LogitShare::BATCH]) {
    float key[LogitShare::BATCH];
#pragma unroll
    for (int b = 0; b < LogitShare::BATCH; b++) {
      const bool left = range.holds(depth_of(logit[b])) && drop_of(logit[b], largest, p.drop_scale) <= p.largest_drop;
      key[b] = left ? share.keys[share.row(first + b * WARP_LANES)] : ptx::minus_infinity();
    }
#pragma unroll
    for (int b = 0; b < LogitShare::BATCH; b++) best.offer(key[b], share.row(first + b * WARP_LANES));
  });
  best.reduce<WARP_LANES>();
  return best;
}

}  // namespace jitmk::vm
