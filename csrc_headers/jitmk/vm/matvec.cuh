// MATVEC: y = epilogue(W prologue(x)).
#pragma once
#include "jitmk/ptx/mma.cuh"
#include "jitmk/vm/activation.cuh"
#include "jitmk/vm/candidate.cuh"
#include "jitmk/vm/prologue.cuh"
#include "jitmk/vm/sample_filter.cuh"

namespace jitmk::vm {

constexpr int EARLY_BATCH = 4;    // chunks that consumers fetch at once before their input is there
// Blocks that they fetch before it, 4 registers each. For sm_120 the compiler gives no warp more than all would have alike.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 1200
constexpr int EARLY_BLOCKS = 14;
#else
constexpr int EARLY_BLOCKS = 16;
#endif

enum class Epilogue { STORE, RESIDUAL, ACTIVATED, GATED, LOGITS };

// One matvec. Config is rendered from MatvecConfig, with BLOCKS, 32-column blocks in a warp's slice, and CHUNKS of a unit.
template <class Config>
struct Matvec : Config {
  using Config::BLOCKS, Config::CHUNKS, Config::COLUMNS, Config::EPILOGUE, Config::ROWS;
  // How a unit lies in chunks, and how much of an instruction consumers fetch early; storers are told of no chunks.
  static constexpr int PARTS = CHUNKS > 0 ? CHUNKS : 1;
  static constexpr bool EVEN = BLOCKS % PARTS == 0;  // all chunks have the same number of blocks
  static constexpr int MAX_BLOCKS = (BLOCKS + PARTS - 1) / PARTS;  // of a chunk
  static constexpr bool NORM = Config::PROLOGUE == Prologue::RMS;  // 1/rms is applied to the dot products
  static constexpr bool NEEDS_ALL = Config::PROLOGUE == Prologue::LAYER || Config::POST != NormKind::NONE;
  static constexpr int CHUNK_BLOCKS = MAX_BLOCKS > 0 ? MAX_BLOCKS : 1;
  // More of wide units, of which fewer fit the ring. A prologue that needs the whole vector needs the registers itself.
  static constexpr int EARLY_CHUNKS = PARTS >= 3 && !NEEDS_ALL ? 2 * EARLY_BLOCKS / CHUNK_BLOCKS : (EARLY_BLOCKS + CHUNK_BLOCKS - 1) / CHUNK_BLOCKS;
  static constexpr int MOST_UNITS = EARLY_CHUNKS / PARTS < PARTIAL_BATCH ? EARLY_CHUNKS / PARTS : PARTIAL_BATCH;
  static constexpr int EARLY_UNITS = PARTS < EARLY_CHUNKS ? MOST_UNITS : 1;
  static constexpr int EARLY = PARTS < EARLY_CHUNKS ? PARTS : EARLY_CHUNKS;  // chunks of each of these
  static constexpr int UNITS = (ROWS + UNIT_ROWS - 1) / UNIT_ROWS;
  static constexpr int SLICE_COLUMNS = BLOCKS * isa::BLOCK_COLUMNS;
  // Long units run in a loop over their chunks, if it finds each alike: less code to compile and to fetch.
  static constexpr bool LOOPED = Config::INPUT_IN_SHARED && CHUNKS > 4 && EVEN && MAX_BLOCKS % CHAINS == 0;
  // Of the sum behind a post-norm, published by a unit.
  static constexpr int SUM_VALUES = Config::POST_SUM ? (COLUMNS + UNITS - 1) / (UNITS > 0 ? UNITS : 1) : 0;
  static constexpr int UNIT_BYTES = BLOCKS * CONSUMER_WARPS * isa::BLOCK_BYTES;
  static constexpr int INPUT_STRIDE = isa::copy_stride((COLUMNS + 1) / 2) * Config::INPUT_SPREAD;
  static constexpr int OUTPUT_STRIDE = isa::bf16_stride(EPILOGUE == Epilogue::GATED ? ROWS / 4 : (ROWS + 1) / 2);
  static constexpr int RESIDUAL_STRIDE = isa::copy_stride(ROWS);
  static_assert(COLUMNS % 16 == 0, "columns must be a multiple of 16");
  static_assert(Config::POST == NormKind::NONE || EPILOGUE != Epilogue::RESIDUAL, "one operand cannot be two residuals");

  __device__ static constexpr int first_block(int chunk) { return EVEN ? MAX_BLOCKS * chunk : BLOCKS * chunk / PARTS; }
  __device__ static constexpr int chunk_blocks(int chunk) { return EVEN ? MAX_BLOCKS : first_block(chunk + 1) - first_block(chunk); }
};

template <class M, class G>
__device__ __forceinline__ void load_matvec(Loader<G>& loader, Instruction in) {
  const int begin = in[isa::UNIT_BEGIN], count = in[isa::UNIT_COUNT], stride = in[isa::UNIT_STRIDE];
  const unsigned char* weights = loader.context.params.weights + static_cast<i64>(in[isa::matvec::WEIGHTS]) * isa::GRAIN_BYTES;
  for (int i = 0; i < count; i++) {
    const unsigned char* from = weights + static_cast<i64>(begin + i * stride) * M::UNIT_BYTES;
    for (int c = 0; c < M::CHUNKS; c++) {
      const int bytes = M::chunk_blocks(c) * CONSUMER_WARPS * isa::BLOCK_BYTES;
      loader.load(from, bytes, (count - i) * M::CHUNKS - c - 1);
      from += bytes;
    }
  }
  loader.mark();
}

// This warp's and lane's part of chunk c of a unit.
template <class M, class G>
__device__ __forceinline__ void read_chunk(const Consumer<G>& consumer, int c, const unsigned char* chunk, uint4* w) {
  const int blocks = M::chunk_blocks(c);
  const auto* weights = reinterpret_cast<const uint4*>(chunk) + consumer.context.warp * blocks * WARP_LANES + consumer.context.lane;
#pragma unroll
  for (int b = 0; b < blocks; b++) w[b] = weights[b * WARP_LANES];
}

// This warp's dot products of a unit. A block of weights is all of A: columns 0 to 3 of every 8 in its upper rows, below them
// columns 4 to 7 of the same 8 rows. B has the input of four blocks side by side, two columns for each, and every block of
// the four has an accumulator of its own: of block b % 4 the products of row g are d[0] and d[3] of lane 4 g + b % 4. The
// rest is of no use, but takes no instruction: one product a block, and no lane holds a value of the input twice.
template <class M>
struct Dots {
  float chain[CHAINS][4];

  __device__ __forceinline__ void add(int block, uint4 w, uint2 x) { ptx::mma_m16n8k16(chain[block % CHAINS], w, x.x, x.y); }
  // Of all blocks in turn: an accumulator's first product is added to nothing.
  __device__ __forceinline__ void multiply(int block, uint4 w, uint2 x) {
    if (block < CHAINS)
      ptx::mma_m16n8k16_first(chain[block], w, x.x, x.y);
    else
      add(block, w, x);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float(&c)[4] : chain) c[0] = c[1] = c[2] = c[3] = 0;
  }

  // This lane's share of row lane / 4, which four lanes have.
  __device__ __forceinline__ float share(int lane) const {
    float sums[CHAINS];
#pragma unroll
    for (int c = 0; c < CHAINS; c++) sums[c] = c < M::BLOCKS ? chain[c][0] + chain[c][3] : 0.0f;
    const float low = lane & 1 ? sums[1] : sums[0], high = lane & 1 ? sums[3] : sums[2];
    return lane & 2 ? high : low;
  }
};

// The rows of some units, from their lanes' shares. meanwhile(): something to be done behind each shuffle.
template <int UNITS, class Meanwhile>
__device__ __forceinline__ void add_shares(float (&rows)[UNITS], Meanwhile meanwhile) {
#pragma unroll
  for (int offset = 1; offset <= 2; offset *= 2) {
    float other[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) other[u] = __shfl_xor_sync(ALL_LANES, rows[u], offset);
    meanwhile();
#pragma unroll
    for (int u = 0; u < UNITS; u++) rows[u] += other[u];
  }
}

template <class M, class G>
__device__ __forceinline__ void consume_matvec(Consumer<G>& consumer, Instruction in) {
  const Context<G>& context = consumer.context;
  const int count = in[isa::UNIT_COUNT];
  const int copy = M::INPUT_COPIES > 1 ? context.sm() % M::INPUT_COPIES : 0;
  const u64* input = context.params.words + in[isa::matvec::INPUT] + copy * M::INPUT_STRIDE;
  const float* norm = M::NORM ? context.params.constants + in[isa::matvec::NORM] : nullptr;
  consumer.mark(Mark::BEGIN);
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
  Input<M> x(consumer.slice, context.lane);
  float square_sum;
  if constexpr (M::NEEDS_ALL)
    square_sum = fetch_normed_input<M>(consumer, in, input, x);
  else
    square_sum = fetch_input<M>(consumer, input, norm, x);
  consumer.mark(Mark::INPUT);
  if (context.warp == 0) consumer.mark(Mark::FIRST_INPUT);
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

// The copies of the word that holds two neighbouring values of a vector.
template <class M>
__device__ __forceinline__ void publish_pair(u64* output, int word, float low, float high, u32 epoch) {
  const u64 w = make_word(ptx::pack_bf16(low, high), epoch);
#pragma unroll
  for (int copy = 0; copy < M::OUTPUT_COPIES; copy++) ptx::store_relaxed_gpu(output + copy * M::OUTPUT_STRIDE + isa::bf16_word(word), w);
}

// What a row needs beside its dot product: its bias, and its word of the residual, which as a rule has long been there.
template <class M>
struct EpilogueOperands {
  float bias = 0;
  u64 residual = 0;

  __device__ __forceinline__ void fetch(const float* biases, const u64* residuals, int row) {
    if (M::BIAS) bias = biases[row];
    if (M::EPILOGUE == Epilogue::RESIDUAL) residual = ptx::load_relaxed_gpu(residuals + row);
  }
};

// Units in groups of four: a lane has one row of one of them. Of a group it takes as many at once as have their sums.
template <class M, class G>
__device__ __forceinline__ void store_matvec(Storer<G>& storer, Instruction in) {
  const Context<G>& context = storer.context;
  const Params& p = context.params;
  constexpr int GROUP = WARP_LANES / UNIT_ROWS;
  const int lane = context.lane, row = lane % UNIT_ROWS, place = lane / UNIT_ROWS;
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
  float largest = ptx::minus_infinity();
  const LogitShare share_of_logits{p.filter_values, p.filter_values + M::UNITS * UNIT_ROWS, begin, stride, count * UNIT_ROWS};
  const auto row_of = [=](int i) { return (begin + i * stride) * UNIT_ROWS + row; };
  const auto inside = [=](int i) { return i < count && (M::ROWS % UNIT_ROWS == 0 || row_of(i) < M::ROWS); };
  EpilogueOperands<M> next;
  if (inside(place)) next.fetch(bias, residual_in, row_of(place));
  for (int group = 0; group < count; group += GROUP) {
    const int mine = group + place, global_row = row_of(mine);
    const bool has_row = inside(mine);
    // What the next group needs beside its sums is on its way while this one's are waited for.
    const EpilogueOperands<M> present = next;
    if (inside(mine + GROUP)) next.fetch(bias, residual_in, row_of(mine + GROUP));
    float residual = 0, noise = 0;
    if constexpr (M::EPILOGUE == Epilogue::RESIDUAL) {
      u32 payload[1] = {word_payload(present.residual)};
      if (!__all_sync(ALL_LANES, !has_row || word_epoch(present.residual) == epoch)) {
        const u64* word[1] = {residual_in + global_row};
        wait_words(context, word, has_row, epoch, Wait::RESIDUAL, global_row, payload);
      }
      residual = __uint_as_float(payload[0]);
    }
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
      if constexpr (M::EPILOGUE == Epilogue::STORE) {
        const float neighbour = __shfl_down_sync(ALL_LANES, y, 1);
        if (active && row % 2 == 0) publish_pair<M>(output, global_row / 2, y, neighbour, epoch);
      } else if constexpr (M::EPILOGUE == Epilogue::RESIDUAL) {
        y = M::SCALE * y + residual;
        const float neighbour = __shfl_down_sync(ALL_LANES, y, 1);
        if (active && row % 2 == 0) publish_pair<M>(output, global_row / 2, y, neighbour, epoch);
        if (active) {
#pragma unroll
          for (int copy = 0; copy < M::RESIDUAL_COPIES; copy++)
            ptx::store_relaxed_gpu(residual_out + copy * M::RESIDUAL_STRIDE + global_row, make_word(__float_as_uint(y), epoch));
        }
      } else if constexpr (M::EPILOGUE == Epilogue::ACTIVATED) {
        const float activated = activate<M::ACTIVATION>(y), neighbour = __shfl_down_sync(ALL_LANES, activated, 1);
        if (active && row % 2 == 0) publish_pair<M>(output, global_row / 2, activated, neighbour, epoch);
      } else if constexpr (M::EPILOGUE == Epilogue::GATED) {
        const float up = __shfl_down_sync(ALL_LANES, y, 1);
        const float activated = activate<M::ACTIVATION>(y) * up;
        const float neighbour = __shfl_down_sync(ALL_LANES, activated, 2);
        if (active && row % 4 == 0) publish_pair<M>(output, global_row / 4, activated, neighbour, epoch);
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
    if (lane == 0) ptx::store_relaxed_gpu(output + word, make_word(__float_as_uint(best.key), epoch));
    if (lane == 1) ptx::store_relaxed_gpu(output + word + 1, make_word(best.token, epoch));
  }
}

}  // namespace jitmk::vm
