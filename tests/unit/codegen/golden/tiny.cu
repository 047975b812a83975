// A decode megakernel, specialised to one model and sm_90a.
// The instruction set and the launch parameter, rendered from jitmk/program/isa.py and jitmk/codegen/abi.py.
#include "jitmk/ptx/types.cuh"

namespace jitmk::isa {

constexpr int INSTRUCTION_WORDS = 32;
constexpr int END_VARIANT = -1;
constexpr int VARIANT = 0;
constexpr int PHASE = 1;
constexpr int UNIT_BEGIN = 2;
constexpr int UNIT_COUNT = 3;
constexpr int UNIT_STRIDE = 4;
namespace embed {
constexpr int TABLE = 5;
constexpr int OUTPUT = 6;
constexpr int RESIDUAL_OUT = 7;
}
namespace matvec {
constexpr int WEIGHTS = 5;
constexpr int INPUT = 6;
constexpr int OUTPUT = 7;
constexpr int NORM = 8;
constexpr int BIAS = 9;
constexpr int RESIDUAL_IN = 10;
constexpr int RESIDUAL_OUT = 11;
constexpr int CANDIDATE = 12;
}
namespace attention {
constexpr int LAYER = 5;
constexpr int INPUT = 6;
constexpr int OUTPUT = 7;
constexpr int SPLITS = 8;
}
namespace attention_reduce {
constexpr int INPUT = 5;
constexpr int OUTPUT = 6;
constexpr int SPLITS = 7;
}
namespace sample {
constexpr int INPUT = 5;
constexpr int CANDIDATES = 6;
}

constexpr int CONSUMER_WARPS = 8;
constexpr int WORKING_WARPS = 10;
constexpr int UNIT_ROWS = 8;
constexpr int BLOCK_COLUMNS = 32;
constexpr int BLOCK_BYTES = 512;
constexpr int GRAIN_BYTES = 256;
constexpr int PARTIAL_EXTRA = 2;
constexpr int HOST_TOKENS = 4096;
constexpr int NO_TOKEN = 2147483647;
constexpr u32 STOP_BIT = 2147483648u;
constexpr int FILTER_BINS = 16;
constexpr int FILTER_ROUND_WORDS = 128;

// Words from one copy of a buffer to the next, for a batch of one.
__device__ constexpr int copy_stride(int words) { return (words + 31) / 32 * 32; }

struct Params {
  const int* instructions;  // [sms][queue_length][32]
  const unsigned char* weights;  // the weight arena
  const float* constants;  // norm weights and biases
  unsigned char* kv;  // [layers][kv_heads][tiles][tile bytes]
  const float2* rope;  // [positions][rotary_dim / 2] cos and sin
  u64* words;  // the word arena: every buffer between phases
  u64* token_words;  // [sms] the token of the step before
  u32* kv_ready;  // [layers][kv_heads] epoch of the last append
  float* logits;  // [steps][vocabulary], or null
  const int* forced_tokens;  // [steps] tokens to read instead of the sampled ones, or null
  float* filter_values;  // [2][units * 8] logits and keys, where there are filters
  u64* filter_words;  // [shares] the largest logit of each
  u64* filter_sums;  // [rounds + 1][lines][16] sums over the SMs, four a line
  u64* host_tokens;  // ring in host memory, indexed by epoch
  volatile u32* report;  // hang report in host memory
  u64* trace;  // [sms][queue_length][marks] cycles, in kernels built for tracing
  u32* halt;  // nonzero once the launch has been given up
  u64 deadline_ns;  // how long a wait may take
  i64 kv_layer_stride;  // bytes
  i64 kv_head_stride;  // bytes
  double top_p;  // 1: no restriction
  int sms;  // CTAs of the launch
  int queue_length;  // instructions of a queue, the end included
  int position;  // of the first step's token: tokens in the cache
  int steps;  // tokens to generate at most
  u32 epoch;  // of the first step
  int first_token;  // the first step's token; negative: made by the launch before
  int window;  // chunk loads in flight at most
  int window_ahead;  // the same while the ring is more than half full
  int greedy;  // whether the noise is left out
  float inverse_temperature;  // 1 when greedy
  int filters;  // whether top_k, top_p or largest_drop restrict the draw
  int shares;  // instructions of the LM head, on an SM each
  int top_k;  // 0: no restriction
  float drop_scale;  // powers of two in the probability for each unit of the logit
  float largest_drop;  // min_p, in powers of two below the most probable token
  u32 seed_low;  // key of the noise
  u32 seed_high;
  int stop_tokens;  // how many of stop_token are in use
  int stop_token[16];  // tokens that end the generation
};

enum class Wait : u32 {
  INPUT = 0,
  RESIDUAL = 1,
  QKV = 2,
  PARTIAL_ATTENTION = 3,
  CANDIDATE = 4,
  TOKEN = 5,
  KV_READY = 6,
  RING_FULL = 7,
  RING_EMPTY = 8,
  PARTIAL_FULL = 9,
  PARTIAL_EMPTY = 10,
  CONSUMERS = 11,
  NOTHING = 12,
  FILTER = 13,
  FILTERED = 14,
};

// Points of an instruction at which a traced kernel notes the time.
enum class Mark : u32 {
  BEGIN = 0,
  INPUT = 1,
  DOTS = 2,
  STORED = 3,
  LOADED = 4,
  STALL = 5,
  MET = 6,
  FIRST_INPUT = 7,
};
constexpr int MARKS = 8;

constexpr int REPORT_VALID = 0;
constexpr int REPORT_SM = 1;
constexpr int REPORT_WARPS = 2;

}  // namespace jitmk::isa

#include "jitmk/vm/kernel.cuh"

namespace jitmk {

struct Geometry {
  using Shared = vm::SharedLayout<Geometry>;
  static constexpr int shared_bytes = 232448;
  static constexpr int slice_bytes = 768;
  static constexpr int chunk_bytes = 16384;
  static constexpr int head_dim = 64;
  static constexpr bool trace = false;
  static constexpr bool race_check = false;
  static constexpr int max_group = 8;
  static constexpr float norm_eps = 1.000000000e-05f;
  static constexpr float score_scale = 1.803368801e-01f;  // of a softmax in base 2

  __device__ __forceinline__ static float activate(float x) {
    return x / (1.0f + __expf(-x));
  }
};

// embed
struct Op0 {
  using Shape = vm::Embed<64, false, 0, 0, 2>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_embed<Shape>(storer, in); }
};

// qkv
struct Op1 {
  using Shape = vm::Matvec<640, 64, 1, 1, vm::Epilogue::STORE, true, true, 2, 1>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<Shape>(storer, in); }
};

// attention
struct Op2 {
  using Shape = vm::Attention<6, 2, 64, 3, false, 2>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_attention<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_attention<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_attention<Shape>(storer, in); }
};

// o_proj
struct Op3 {
  using Shape = vm::Matvec<64, 384, 2, 1, vm::Epilogue::RESIDUAL, false, true, 2, 2>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<Shape>(storer, in); }
};

// gate_up
struct Op4 {
  using Shape = vm::Matvec<192, 64, 1, 1, vm::Epilogue::GATED, true, true, 2, 2>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<Shape>(storer, in); }
};

// down
struct Op5 {
  using Shape = vm::Matvec<64, 96, 1, 1, vm::Epilogue::RESIDUAL, false, true, 2, 2>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<Shape>(storer, in); }
};

// lm_head
struct Op6 {
  using Shape = vm::Matvec<101, 64, 1, 1, vm::Epilogue::LOGITS, true, false, 2, 1>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<Shape>(storer, in); }
};

// sample
struct Op7 {
  __device__ __forceinline__ static void load(vm::Loader<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_sample(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>&, vm::Instruction) {}
};

// attention_partial
struct Op8 {
  using Shape = vm::Attention<6, 2, 64, 3, true, 1>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_attention<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_attention<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_attention<Shape>(storer, in); }
};

// attention_reduce
struct Op9 {
  using Shape = vm::AttentionReduce<6, 64, 2>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_attention_reduce<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>&, vm::Instruction) {}
};

struct Ops {
  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) {
    switch (in.variant()) {
      case 0: return Op0::load(loader, in);
      case 1: return Op1::load(loader, in);
      case 2: return Op2::load(loader, in);
      case 3: return Op3::load(loader, in);
      case 4: return Op4::load(loader, in);
      case 5: return Op5::load(loader, in);
      case 6: return Op6::load(loader, in);
      case 7: return Op7::load(loader, in);
      case 8: return Op8::load(loader, in);
      case 9: return Op9::load(loader, in);
    }
  }

  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) {
    switch (in.variant()) {
      case 0: return Op0::consume(consumer, in);
      case 1: return Op1::consume(consumer, in);
      case 2: return Op2::consume(consumer, in);
      case 3: return Op3::consume(consumer, in);
      case 4: return Op4::consume(consumer, in);
      case 5: return Op5::consume(consumer, in);
      case 6: return Op6::consume(consumer, in);
      case 7: return Op7::consume(consumer, in);
      case 8: return Op8::consume(consumer, in);
      case 9: return Op9::consume(consumer, in);
    }
  }

  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) {
    switch (in.variant()) {
      case 0: return Op0::store(storer, in);
      case 1: return Op1::store(storer, in);
      case 2: return Op2::store(storer, in);
      case 3: return Op3::store(storer, in);
      case 4: return Op4::store(storer, in);
      case 5: return Op5::store(storer, in);
      case 6: return Op6::store(storer, in);
      case 7: return Op7::store(storer, in);
      case 8: return Op8::store(storer, in);
      case 9: return Op9::store(storer, in);
    }
  }
};

}  // namespace jitmk

extern "C" __global__ void __launch_bounds__(jitmk::vm::THREADS, 1) jitmk_decode(const __grid_constant__ jitmk::isa::Params params) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  jitmk::vm::run<jitmk::Geometry, jitmk::Ops>(params, shared_memory);
}
