// MATVEC: y = epilogue(W prologue(x)).
#pragma once
#include "jitmk/vm/candidate.cuh"
#include "jitmk/vm/own_units.cuh"
#include "jitmk/vm/sample_filter.cuh"

namespace jitmk::vm {

template <class M, class G>
__device__ __forceinline__ void load_matvec(Loader<G>& loader, Instruction in) {
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const unsigned char* weights = loader.context.params.weights + static_cast<i64>(in[isa::matvec::WEIGHTS]) * isa::GRAIN_BYTES;
  for (int i = 0; i < count; i++) {
    const unsigned char* from = weights + static_cast<i64>(begin + i * stride) * M::UNIT_BYTES;
    for (int c = 0; c < M::CHUNKS; c++) {
      const int bytes = M::chunk_bytes(c);
      loader.load(from, bytes, (count - i) * M::CHUNKS - c - 1, M::OWN_UNITS ? 1 : CONSUMER_WARPS);
      from += bytes;
    }
  }
  loader.mark();
}

// All warps share a unit, each with its slice of the columns.
template <class M, class G>
__device__ __forceinline__ void consume_shared_units(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const int count = in[isa::UNIT_COUNT];
  const int copy = M::INPUT_COPIES > 1 ? context.sm() % M::INPUT_COPIES : 0;
  const u64* input = context.params.words + in[isa::matvec::INPUT] + copy * M::INPUT_STRIDE;
  const float* norm = M::NORM ? context.params.constants + in[isa::matvec::NORM] : nullptr;
  consumer.mark(Mark::BEGIN);
  const u64 begun = M::BEHIND_OWN_UNITS ? ptx::clock() : 0;
  // The first weights wait for the input in registers: their places in the ring are the loader's again, and when the input
  // is there, nothing is left to do but to multiply.
  constexpr int EARLY_TOTAL = M::EARLY_UNITS * M::EARLY, AT_ONCE = EARLY_BATCH < G::Shared::RING_CHUNKS ? EARLY_BATCH : G::Shared::RING_CHUNKS;
  constexpr int BATCH = EARLY_TOTAL < AT_ONCE ? EARLY_TOTAL : AT_ONCE;
  // Those of units that there may not be are zeros first: registers that only a branch fills would be held from one
  // instruction to the next.
  uint4 early[M::EARLY_UNITS][M::first_block(M::EARLY)];
#pragma unroll
  for (int u = 1; u < M::EARLY_UNITS; u++)
#pragma unroll
    for (uint4& w : early[u]) w = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int first = 0; first < EARLY_TOTAL; first += BATCH) {
    const auto wanted = [=](int i) { return first + i < EARLY_TOTAL && (first + i < M::EARLY || (first + i) / M::EARLY < count); };
    consumer.template read_chunks<BATCH>(wanted, [&](int i, const unsigned char* from) {
      const int u = (first + i) / M::EARLY, c = (first + i) % M::EARLY;
      read_chunk<M>(consumer, c, from, early[u] + M::first_block(c));
    });
  }
  constexpr bool WHOLE = M::EARLY == M::CHUNKS;  // early units, not the first part of one
  if constexpr (WHOLE) consumer.reserve_partials(M::EARLY_UNITS);
  if constexpr (M::BEHIND_OWN_UNITS) consumer.await_first_look(begun);
  Input<M> x(consumer.slice, context.lane);
  float square_sum = fetch_prologue<M>(consumer, in, input, norm, x);
  // The sum of squares over the lanes takes five shuffles one after the other; they go between what has nothing to do with it.
  int squares = M::NORM ? 1 : WARP_LANES;
  const auto sum_squares = [&] {
    if (squares < WARP_LANES) square_sum += __shfl_xor_sync(ALL_LANES, square_sum, squares), squares *= 2;
  };
  const auto sum_all_squares = [&] {
#pragma unroll
    for (int round = 0; round < 5; round++) sum_squares();
  };
  sum_squares();
  constexpr int TOGETHER = WHOLE && M::EARLY_UNITS % 2 == 0 ? 2 : 1;
  Dots<M> dots;
  if constexpr (WHOLE) {
#pragma unroll
    for (int u = 0; u < M::EARLY_UNITS; u += TOGETHER) {
      if (u > 0 && u >= count) break;
      // One more than there are does no harm: its weights are zeros.
      Dots<M> some[TOGETHER];
#pragma unroll
      for (int block = 0; block < M::BLOCKS; block++) {
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) some[i].multiply(block, early[u + i][block], x[block / CHAINS]);
        if (block % 2 == 1) sum_squares();
      }
      float rows[TOGETHER];
#pragma unroll
      for (int i = 0; i < TOGETHER; i++) rows[i] = some[i].share(context.lane);
      add_shares(rows, sum_squares);
      sum_all_squares();
#pragma unroll
      for (int i = 0; i < TOGETHER; i++)
        if (u + i == 0 || u + i < count) consumer.report_partial(rows[i], square_sum);
    }
    if constexpr (M::LOOPED) dots.clear();
  } else {
#pragma unroll
    for (int block = 0; block < M::first_block(M::EARLY); block++) {
      dots.multiply(block, early[0][block], x[block / CHAINS]);
      if (block % 2 == 1) sum_squares();
    }
    sum_all_squares();
  }
  int first_chunk = M::EARLY % M::CHUNKS;
  constexpr int UNROLLED = M::LOOPED ? 2 : M::CHUNKS;
  for (int u = WHOLE ? M::EARLY_UNITS : 0; u < count; u++) {
#pragma unroll UNROLLED
    for (int c = M::LOOPED ? first_chunk : 0; c < M::CHUNKS; c++) {
      if (!M::LOOPED && c < first_chunk) continue;
      uint4 w[M::MAX_BLOCKS];
      read_chunk<M>(consumer, c, consumer.acquire_chunk(), w);
#pragma unroll
      for (int b = 0; b < M::chunk_blocks(c); b++) {
        if constexpr (M::LOOPED) {
          dots.add(b, w[b], x[c * (M::MAX_BLOCKS / CHAINS) + b / CHAINS]);
        } else {
          const int block = M::first_block(c) + b;
          dots.multiply(block, w[b], x[block / CHAINS]);
        }
      }
      if (c + 1 < M::CHUNKS) consumer.release_chunk();
    }
    consumer.reserve_partials(1);
    float row[1] = {dots.share(context.lane)};
    add_shares(row, [] {});
    consumer.report_partial(row[0], square_sum);
    consumer.release_chunk();  // the last one only now: somebody waits for the sums, nobody for the slot
    if constexpr (M::LOOPED) dots.clear();
    first_chunk = 0;
  }
  consumer.mark(Mark::DOTS);
  if constexpr (M::POST_SUM) publish_sum<M>(consumer, in);  // only now: nobody waits for it before the next block's end
}

template <class M, class G>
__device__ __forceinline__ void consume_matvec(Consumer<G>& consumer, Instruction in) {
  if constexpr (M::OWN_UNITS)
    consume_own_units<M>(consumer, in);
  else
    consume_shared_units<M>(consumer, in);
}

// Units in groups of four: a lane has one row of one of them. Of a group it takes as many at once as have their sums.
template <class M, class G>
__device__ __forceinline__ void store_shared_units(Storer<G>& storer, Instruction in) {
  const Context<G>& context = storer.context;
  const Params& p = context.params;
  constexpr int GROUP = WARP_LANES / UNIT_ROWS;
  const int lane = context.lane, row = lane % UNIT_ROWS, place = lane / UNIT_ROWS;
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const Rows<M> rows(context, in);
  Candidate best;
  float largest = ptx::minus_infinity();
  const LogitShare share_of_logits{p.filter_values, p.filter_values + M::UNITS * UNIT_ROWS, begin, stride, count * UNIT_ROWS};
  const auto row_of = [=](int i) { return (begin + i * stride) * UNIT_ROWS + row; };
  const auto inside = [=](int i) { return i < count && (M::ROWS % UNIT_ROWS == 0 || row_of(i) < M::ROWS); };
  EpilogueOperands<M> next;
  if (inside(place)) rows.fetch(next, row_of(place));
  for (int group = 0; group < count; group += GROUP) {
    const int mine = group + place, global_row = row_of(mine);
    const bool has_row = inside(mine);
    // What the next group needs beside its sums is on its way while this one's are waited for.
    const EpilogueOperands<M> present = next;
    if (inside(mine + GROUP)) rows.fetch(next, row_of(mine + GROUP));
    const float residual = rows.residual(context, present, global_row, has_row);
    float noise = 0;
    if constexpr (M::EPILOGUE == Epilogue::LOGITS) noise = gumbel_of_row(p, context.position() + 1, begin + mine * stride, row);
    const UnitPartials& partials = storer.partials(place);  // where this lane's sums will be: known before they are there
    const int last = min(group + GROUP, count);
    for (int i = group, units; i < last; i += units) {
      units = last - i;
      if (units == 1 || !storer.has_partials(units - 1)) {
        storer.acquire_partials();
        units = 1;
      }
      const bool active = has_row && mine >= i && mine < i + units;
      // A lane whose unit is not among them computes what it finds, and keeps it to itself.
      float sums[CONSUMER_WARPS] = {}, squares[CONSUMER_WARPS] = {};
      if (!G::race_check || active) {
#pragma unroll
        for (int w = 0; w < CONSUMER_WARPS; w++) sums[w] = partials.row[w][row], squares[w] = partials.square_sum[w];
      }
      // Of every unit anew: that takes less time than a branch, and warps report it with each.
      const float scale = M::NORM ? ptx::rsqrt_approx(sum(squares) * (1.0f / M::COLUMNS) + M::NORM_EPS) : 1.0f;
      float y = sum(sums) * scale + present.bias;
      if constexpr (M::EPILOGUE != Epilogue::LOGITS) {
        rows.publish(global_row, rows.word_of(global_row), y, residual, active);
      } else {
        y *= M::SCALE;
        if constexpr (M::SOFT_CAP != 0) y = soft_cap(y, M::SOFT_CAP);
        if (active && p.logits != nullptr) p.logits[static_cast<i64>(context.step) * M::ROWS + global_row] = y;
        const float key = y * p.inverse_temperature + noise;
        if (active) best.offer(key, global_row);
        if (p.filters && mine >= i && mine < i + units) {
          const float logit = has_row ? y : ptx::minus_infinity();
          largest = fmaxf(largest, logit);
          share_of_logits.put(global_row, logit, key);
        }
      }
      for (int u = 0; u < units; u++) storer.release_partials();
    }
  }
  context.mark(Mark::STORED);
  if constexpr (M::EPILOGUE == Epilogue::LOGITS) {
    const int slot = in[isa::matvec::CANDIDATE], word = 2 * slot;
    if (p.filters) {
      __syncwarp();  // every lane reads what others have put
      best = filter_share(context, share_of_logits, context.shared.filter_bins(), slot, largest);
    } else {
      best.reduce<WARP_LANES>();
    }
    if (lane == 0) ptx::store_relaxed_gpu(rows.output + word, make_word(__float_as_uint(best.key), rows.epoch));
    if (lane == 1) ptx::store_relaxed_gpu(rows.output + word + 1, make_word(best.token, rows.epoch));
  }
}

template <class M, class G>
__device__ __forceinline__ void store_matvec(Storer<G>& storer, Instruction in) {
  if constexpr (!M::OWN_UNITS) store_shared_units<M>(storer, in);
}

}  // namespace jitmk::vm
