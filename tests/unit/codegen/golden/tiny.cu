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
constexpr int POSITIONS = 6;
constexpr int OUTPUT = 7;
constexpr int RESIDUAL_OUT = 8;
}
namespace matvec {
constexpr int WEIGHTS = 5;
constexpr int INPUT = 6;
constexpr int OUTPUT = 7;
constexpr int NORM = 8;
constexpr int NORM_BIAS = 9;
constexpr int BIAS = 10;
constexpr int RESIDUAL_IN = 11;
constexpr int RESIDUAL_OUT = 12;
constexpr int CANDIDATE = 13;
constexpr int POST_NORM = 14;
constexpr int POST_NORM_BIAS = 15;
constexpr int SPLITS = 16;
constexpr int LSE = 17;
}
namespace attention {
constexpr int LAYER = 5;
constexpr int INPUT = 6;
constexpr int VALUE_INPUT = 7;
constexpr int OUTPUT = 8;
constexpr int SPLITS = 9;
constexpr int WINDOW = 10;
constexpr int ROPE = 11;
constexpr int Q_NORM = 12;
constexpr int K_NORM = 13;
constexpr int APPENDED = 14;
constexpr int LSE_OUT = 15;
}
namespace attention_reduce {
constexpr int INPUT = 5;
constexpr int OUTPUT = 6;
constexpr int SPLITS = 7;
constexpr int LSE = 8;
}
namespace sample {
constexpr int INPUT = 5;
constexpr int CANDIDATES = 6;
}
namespace norm {
constexpr int INPUT = 5;
constexpr int OUTPUT = 6;
constexpr int NORM = 7;
constexpr int NORM_BIAS = 8;
constexpr int FIRST = 9;
}
namespace residual_norm_add {
constexpr int INPUT = 5;
constexpr int RESIDUAL_IN = 6;
constexpr int OUTPUT = 7;
constexpr int RESIDUAL_OUT = 8;
constexpr int NORM = 9;
constexpr int NORM_BIAS = 10;
}
namespace residual_add {
constexpr int INPUT = 5;
constexpr int RESIDUAL_IN = 6;
constexpr int OUTPUT = 7;
constexpr int RESIDUAL_OUT = 8;
}
namespace rope {
constexpr int INPUT = 5;
constexpr int OUTPUT = 6;
constexpr int ROPE = 7;
}
namespace kv_append {
constexpr int LAYER = 5;
constexpr int INPUT = 6;
constexpr int VALUE_INPUT = 7;
constexpr int OUTPUT = 8;
}
namespace activate {
constexpr int INPUT = 5;
constexpr int OUTPUT = 6;
}
namespace gated_activate {
constexpr int INPUT = 5;
constexpr int OUTPUT = 6;
}
namespace add {
constexpr int INPUT = 5;
constexpr int OTHER = 6;
constexpr int OUTPUT = 7;
}
namespace copy {
constexpr int INPUT = 5;
constexpr int OUTPUT = 6;
constexpr int FIRST = 7;
}
namespace zero {
constexpr int OUTPUT = 5;
}
namespace barrier {
constexpr int OUTPUT = 5;
}
namespace no_op {
}

constexpr int CONSUMER_WARPS = 8;
constexpr int WORKING_WARPS = 10;
constexpr int WARPS = 12;
constexpr int UNIT_ROWS = 8;
constexpr int BLOCK_COLUMNS = 32;
constexpr int BLOCK_BYTES = 512;
constexpr int CHAINS = 4;
constexpr int GRAIN_BYTES = 256;
constexpr int LSE_WORDS = 4;
constexpr int MERGED_SPLITS = 4;
constexpr int REDUCED_SPLITS = 32;
constexpr int FEW_SPLITS = 16;
constexpr int ELEMENTWISE_VALUES = 256;
constexpr int HOST_TOKENS = 4096;
constexpr int NO_TOKEN = 2147483647;
constexpr u32 STOP_BIT = 2147483648u;
constexpr int FILTER_BINS = 16;
constexpr int FILTER_ROUND_WORDS = 128;

constexpr int SECTOR_WORDS = 4;
constexpr int WORD_SPREAD = 4;

// Where the i-th word of a vector lies whose sectors are `spread` sectors apart: see program.Buffer.
__device__ constexpr int spread_word(u32 i, int spread) {
  return static_cast<int>(spread == 1 ? i : i / SECTOR_WORDS * (SECTOR_WORDS * spread) + i % SECTOR_WORDS);
}

constexpr int LSE_STRIDE = spread_word(LSE_WORDS, WORD_SPREAD);  // words from one to the next

// Of bf16 vectors, other than attention's output.
__device__ constexpr int bf16_word(u32 i) { return spread_word(i, WORD_SPREAD); }

// Words from one copy of a buffer to the next, for a batch of one.
__device__ constexpr int copy_stride(int words) { return (words + 31) / 32 * 32; }
__device__ constexpr int bf16_stride(int words) { return copy_stride(words) * WORD_SPREAD; }

struct Params {
  const int* instructions;  // [sms][queue_length][32]
  const unsigned char* weights;  // the weight arena
  const float* constants;  // norm weights and biases
  unsigned char* kv;  // [layers][kv_heads][tiles][tile bytes]
  const float2* rope;  // cos and sin (program/rope_layout.py)
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
  int window;  // chunk loads in flight, but for the middle of long instructions
  int window_ahead;  // the same while the ring is more than half full
  int first_look;  // cycles from a matvec behind own units to its first look for input
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
  APPENDED = 13,
  BARRIER = 14,
  FILTER = 15,
  FILTERED = 16,
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
  static constexpr int chunk_bytes = 12288;
  static constexpr int head_dim = 64;
  static constexpr bool trace = false;
  static constexpr bool race_check = false;
  static constexpr int max_group = 8;
  static constexpr bool own_units = true;
};

// embed
struct Op0 {
  struct Config {
    static constexpr int VOCAB_SIZE = 101;
    static constexpr int HIDDEN_SIZE = 64;
    static constexpr bool TIED = false;
    static constexpr int OUTPUT_COPIES = 2;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr bool POSITIONS = false;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
  };
  using Shape = vm::Embed<Config>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_embed<Shape>(storer, in); }
};

// qkv
struct Op1 {
  struct LoadConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 64;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = true;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct ConsumeConfig {
    static constexpr int ROWS = 640;
    static constexpr int COLUMNS = 64;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::RMS;
    static constexpr float NORM_EPS = 1.000000000e-05f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = true;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 2;
    static constexpr int INPUT_SPREAD = 4;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = true;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct StoreConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 0;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 4;
    static constexpr bool OWN_UNITS = true;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 0;
    static constexpr int CHUNKS = 0;
    static constexpr int UNIT_BLOCKS = 0;
    static constexpr bool INPUT_IN_SHARED = false;
  };

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<vm::Matvec<LoadConfig>>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<vm::Matvec<ConsumeConfig>>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<vm::Matvec<StoreConfig>>(storer, in); }
};

// attention
struct Op2 {
  struct Config {
    static constexpr int HEADS = 6;
    static constexpr int KV_HEADS = 2;
    static constexpr int HEAD_DIM = 64;
    static constexpr int GROUP = 3;
    static constexpr float SCALE = 1.250000000e-01f;
    static constexpr int OUTPUT_COPIES = 2;
    static constexpr int ROTARY_DIM = 64;
    static constexpr int ROPE_STRIDE = 32;
    static constexpr bool WINDOW = false;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr vm::NormKind QK_NORM = vm::NormKind::NONE;
    static constexpr float QK_NORM_EPS = 0.000000000e+00f;
    static constexpr bool APPEND = true;
    static constexpr bool MERGED = true;
    static constexpr int EARLY_TILES = 3;
  };
  using Shape = vm::Attention<Config>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_attention<Shape>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_attention<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_attention<Shape>(storer, in); }
};

// o_proj
struct Op3 {
  struct LoadConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 384;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 2;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 12;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct ConsumeConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 384;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 2;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = true;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 2;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 12;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct StoreConfig {
    static constexpr int ROWS = 64;
    static constexpr int COLUMNS = 0;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::RESIDUAL;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = true;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 2;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 0;
    static constexpr int CHUNKS = 0;
    static constexpr int UNIT_BLOCKS = 0;
    static constexpr bool INPUT_IN_SHARED = false;
  };

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<vm::Matvec<LoadConfig>>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<vm::Matvec<ConsumeConfig>>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<vm::Matvec<StoreConfig>>(storer, in); }
};

// gate_up
struct Op4 {
  struct LoadConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 64;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = true;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct ConsumeConfig {
    static constexpr int ROWS = 192;
    static constexpr int COLUMNS = 64;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::GATED;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::RMS;
    static constexpr float NORM_EPS = 1.000000000e-05f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = true;
    static constexpr vm::Activation ACTIVATION = vm::Activation::SILU;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 2;
    static constexpr int INPUT_SPREAD = 4;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 2;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = true;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct StoreConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 0;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 4;
    static constexpr bool OWN_UNITS = true;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 0;
    static constexpr int CHUNKS = 0;
    static constexpr int UNIT_BLOCKS = 0;
    static constexpr bool INPUT_IN_SHARED = false;
  };

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<vm::Matvec<LoadConfig>>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<vm::Matvec<ConsumeConfig>>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<vm::Matvec<StoreConfig>>(storer, in); }
};

// down
struct Op5 {
  struct LoadConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 96;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 3;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct ConsumeConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 96;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 2;
    static constexpr int INPUT_SPREAD = 4;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = true;
    static constexpr bool BEHIND_OWN_UNITS = true;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 3;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct StoreConfig {
    static constexpr int ROWS = 64;
    static constexpr int COLUMNS = 0;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::RESIDUAL;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = true;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 2;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 0;
    static constexpr int CHUNKS = 0;
    static constexpr int UNIT_BLOCKS = 0;
    static constexpr bool INPUT_IN_SHARED = false;
  };

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<vm::Matvec<LoadConfig>>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<vm::Matvec<ConsumeConfig>>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<vm::Matvec<StoreConfig>>(storer, in); }
};

// lm_head
struct Op6 {
  struct LoadConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 64;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct ConsumeConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 64;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::RMS;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 2;
    static constexpr int INPUT_SPREAD = 4;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = true;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct StoreConfig {
    static constexpr int ROWS = 101;
    static constexpr int COLUMNS = 64;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::LOGITS;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::RMS;
    static constexpr float NORM_EPS = 1.000000000e-05f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 1;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 2;
    static constexpr bool INPUT_IN_SHARED = false;
  };

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<vm::Matvec<LoadConfig>>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<vm::Matvec<ConsumeConfig>>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<vm::Matvec<StoreConfig>>(storer, in); }
};

// sample
struct Op7 {
  __device__ __forceinline__ static void load(vm::Loader<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_sample(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>&, vm::Instruction) {}
};

// o_proj_merge
struct Op8 {
  struct LoadConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 384;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 2;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 12;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct ConsumeConfig {
    static constexpr int ROWS = 0;
    static constexpr int COLUMNS = 384;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::STORE;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::MERGE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 6;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = false;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 2;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 1;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = true;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 2;
    static constexpr int CHUNKS = 1;
    static constexpr int UNIT_BLOCKS = 12;
    static constexpr bool INPUT_IN_SHARED = false;
  };
  struct StoreConfig {
    static constexpr int ROWS = 64;
    static constexpr int COLUMNS = 0;
    static constexpr vm::Epilogue EPILOGUE = vm::Epilogue::RESIDUAL;
    static constexpr vm::Prologue PROLOGUE = vm::Prologue::NONE;
    static constexpr float NORM_EPS = 0.000000000e+00f;
    static constexpr bool NORM_BIAS = false;
    static constexpr int HEADS = 0;
    static constexpr vm::NormKind POST = vm::NormKind::NONE;
    static constexpr bool POST_BIAS = false;
    static constexpr float POST_SCALE = 1.000000000e+00f;
    static constexpr bool POST_SUM = false;
    static constexpr bool BIAS = true;
    static constexpr vm::Activation ACTIVATION = vm::Activation::NONE;
    static constexpr float SCALE = 1.000000000e+00f;
    static constexpr float SOFT_CAP = 0.000000000e+00f;
    static constexpr int INPUT_COPIES = 1;
    static constexpr int INPUT_SPREAD = 1;
    static constexpr int RESIDUAL_COPIES = 1;
    static constexpr int OUTPUT_COPIES = 2;
    static constexpr int CHUNK_LIMIT = 3;
    static constexpr bool OWN_UNITS = false;
    static constexpr bool LONE_UNITS = false;
    static constexpr bool BEHIND_OWN_UNITS = false;
    static constexpr int BLOCKS = 0;
    static constexpr int CHUNKS = 0;
    static constexpr int UNIT_BLOCKS = 0;
    static constexpr bool INPUT_IN_SHARED = false;
  };

  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) { vm::load_matvec<vm::Matvec<LoadConfig>>(loader, in); }
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_matvec<vm::Matvec<ConsumeConfig>>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) { vm::store_matvec<vm::Matvec<StoreConfig>>(storer, in); }
};

// attention_reduce
struct Op9 {
  struct Config {
    static constexpr int HEADS = 6;
    static constexpr int HEAD_DIM = 64;
    static constexpr int OUTPUT_COPIES = 2;
    static constexpr bool ONLY_FEW = false;
  };
  using Shape = vm::AttentionReduce<Config>;

  __device__ __forceinline__ static void load(vm::Loader<Geometry>&, vm::Instruction) {}
  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) { vm::consume_attention_reduce<Shape>(consumer, in); }
  __device__ __forceinline__ static void store(vm::Storer<Geometry>&, vm::Instruction) {}
};

struct Ops {
  __device__ __forceinline__ static void load(vm::Loader<Geometry>& loader, vm::Instruction in) {
    const u32 bit = static_cast<u32>(1) << in.variant;
    if (bit & 0x11f) {
      if (bit & 0x13) {
        if (bit & 0x1) {
          Op0::load(loader, in);
        } else {
          Op1::load(loader, in);
        }
      } else {
        if (bit & 0x4) {
          Op2::load(loader, in);
        } else {
          Op3::load(loader, in);
        }
      }
    } else {
      if (bit & 0x60) {
        if (bit & 0x20) {
          Op5::load(loader, in);
        } else {
          Op6::load(loader, in);
        }
      } else {
        if (bit & 0x80) {
          Op7::load(loader, in);
        } else {
          Op9::load(loader, in);
        }
      }
    }
  }

  __device__ __forceinline__ static void consume(vm::Consumer<Geometry>& consumer, vm::Instruction in) {
    const u32 bit = static_cast<u32>(1) << in.variant;
    if (bit & 0x1f) {
      if (bit & 0x3) {
        if (bit & 0x1) {
          Op0::consume(consumer, in);
        } else {
          Op1::consume(consumer, in);
        }
      } else {
        if (bit & 0x4) {
          Op2::consume(consumer, in);
        } else {
          if (bit & 0x8) {
            Op3::consume(consumer, in);
          } else {
            Op4::consume(consumer, in);
          }
        }
      }
    } else {
      if (bit & 0x60) {
        if (bit & 0x20) {
          Op5::consume(consumer, in);
        } else {
          Op6::consume(consumer, in);
        }
      } else {
        if (bit & 0x80) {
          Op7::consume(consumer, in);
        } else {
          if (bit & 0x100) {
            Op8::consume(consumer, in);
          } else {
            Op9::consume(consumer, in);
          }
        }
      }
    }
  }

  __device__ __forceinline__ static void store(vm::Storer<Geometry>& storer, vm::Instruction in) {
    const u32 bit = static_cast<u32>(1) << in.variant;
    if (bit & 0x17) {
      if (bit & 0x1) {
        Op0::store(storer, in);
      } else {
        if (bit & 0x12) {
          Op1::store(storer, in);
        } else {
          Op2::store(storer, in);
        }
      }
    } else {
      if (bit & 0x168) {
        if (bit & 0x128) {
          Op3::store(storer, in);
        } else {
          Op6::store(storer, in);
        }
      } else {
        if (bit & 0x80) {
          Op7::store(storer, in);
        } else {
          Op9::store(storer, in);
        }
      }
    }
  }

};

}  // namespace jitmk

extern "C" __global__ void __launch_bounds__(jitmk::vm::THREADS, 1) jitmk_decode(const __grid_constant__ jitmk::isa::Params params) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  jitmk::vm::run<jitmk::Geometry, jitmk::Ops>(params, shared_memory);
}
