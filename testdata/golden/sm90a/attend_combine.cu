#line 4 "templates/attend_combine/kernel.cu"
// Generated from templates/attend_combine for sm90a. Do not edit.
//
// attend_combine: O[t, h, :] = rotated back(sum_s w_s * part_s / (sum_s w_s * sum_s + 2^(sink - max))), where
// w_s = 2^(max_s - max), over the splits of templates/attend that have keys, in ascending order.
//
//   operand     shape                        in memory                         written / read
//   workspace   [splits, m, heads, head_dim] f32 sums, then (maximum, sum)     read once
//   o           [m, heads, head_dim]         BF16                              written
//   kv_step .. index_state                   as in templates/store_step        with kStores
//
//   block = whole warps, one token and head, four columns a thread; no shared memory
//   grid = (tokens, heads); with kStores one more row of blocks, which does what templates/store_step does
//
// Storing needs only that attention has read the rings, and here a step does not wait for one more launch.
// What a short step waits for is memory, so the parts of up to kBatch splits are asked for at once, before it is known
// whether they have keys; sinks, positions and angles are read before the launch ahead has ended.
// Exactness: f32 sums in the order of the splits, one rounding to BF16.
#line 1 "templates/lib/words.cuh"
// Machine words and the small arithmetic of every kernel: names that NVRTC does not bring along without headers.

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

// The bits of a BF16 value.
using bf16 = uint16_t;

__device__ __forceinline__ float float_of(bf16 value) { return __uint_as_float(uint32_t{value} << 16); }

// Address of shared memory as the 32-bit number that PTX takes.
__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__host__ __device__ constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_divide(a, b) * b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
#line 22 "templates/attend_combine/kernel.cu"
#line 1 "templates/arch/sm90a/bf16.cuh"
// BF16 arithmetic and conversion, each with one rounding.

// mul.rn.bf16x2: the product of two pairs; subnormal operands are not flushed.
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// cvt.rn.bf16x2.f32: two floats to one pair, `low` in the low half.
__device__ __forceinline__ uint32_t pair_from_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// cvt.rn.bf16.f32: one float to the bits of a BF16.
__device__ __forceinline__ uint16_t bf16_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#line 23 "templates/attend_combine/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 24 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/math.cuh"
// Elementary functions from FMA and IEEE operations only, so that their bits are defined: src/quant/math.rs has the
// same operations in the same order and gives the same bits on the CPU.

// 2^exponent for -126 to 127.
__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

// 2^x within 1.1e-7: the fraction by a polynomial, the integer part as two exact factors.
__device__ __forceinline__ float exp2_defined(float x) {
  x = x < -150.0f ? -150.0f : x;
  x = x > 128.5f ? 128.5f : x;
  const float rounded = rintf(x);
  const float f = x - rounded;
  float p = __int_as_float(0x3926093E);
  p = __fmaf_rn(p, f, __int_as_float(0x3AAFDFD1));
  p = __fmaf_rn(p, f, __int_as_float(0x3C1D90E4));
  p = __fmaf_rn(p, f, __int_as_float(0x3D6356D4));
  p = __fmaf_rn(p, f, __int_as_float(0x3E75FDF3));
  p = __fmaf_rn(p, f, __int_as_float(0x3F317219));
  p = __fmaf_rn(p, f, 1.0f);
  const int n = __float2int_rn(rounded);
  const int low = n >> 1;
  return p * power_of_two(low) * power_of_two(n - low);
}
#line 25 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 26 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/step_arrays.cuh"
// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. The host writes them
// while its stream is idle, and templates/advance ends a step: behind it stands no launch of the same graph, and the
// host waits before it launches another step in a row. So a kernel of a step may ask for them before it waits for the
// launch ahead, and behind its wait one way to memory is left where there were two or three. (Two steps in one graph
// would need a full edge between them; that advance lets nobody start early is a second lock, not the first.)
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
#line 27 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/lanes.cuh"
// Sums over the lanes of a warp and the warps of a block, in an order that never changes.

// The sum over all lanes, the same bits in each: a butterfly adds the same pairs on both sides.
__device__ __forceinline__ float lane_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// The largest over `width` neighbouring lanes, a power of two. A NaN takes no part.
__device__ __forceinline__ float lane_maximum(float value, int width) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    if (step < width) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  }
  return value;
}

// One step of spread_sums and those after it: as a template, for only constant places of `values` stay in registers.
template <int kWidth>
__device__ __forceinline__ void spread_step(float (&values)[32], int lane) {
  const bool is_upper = (lane & kWidth) != 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float kept = is_upper ? values[i + kWidth] : values[i];
    const float given = is_upper ? values[i] : values[i + kWidth];
    values[i] = kept + __shfl_xor_sync(~0u, given, kWidth);
  }
  if constexpr (kWidth > 1) spread_step<kWidth / 2>(values, lane);
}

// Sums 32 values over the lanes at once; lane i gets the sum of value i. In each step a lane gives away the half of its
// values that the other one keeps: 31 shuffles in place of 160.
__device__ __forceinline__ float spread_sums(float (&values)[32], int lane) {
  spread_step<16>(values, lane);
  return values[0];
}

// The sum over the threads of `n_warps` warps, warp by warp in ascending order; `sync` joins them. `shared` has a float
// for each of them.
template <class Sync>
__device__ __forceinline__ float thread_sum(float value, float* shared, int n_warps, Sync sync) {
  value = lane_sum(value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  sync();
  float sum = 0.0f;
  for (int warp = 0; warp < n_warps; ++warp) sum += shared[warp];
  return sum;
}
#line 28 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/attended.cuh"
// The keys of a token in the order in which they are summed: its window from the oldest position on, then its entries.

// Which compressed entries are attended.
enum class Compressed { kNone, kListed, kAll };

// Whole tiles of keys, end exclusive.
struct TileRange {
  int begin;
  int end;
};

template <class Config>
struct Attended {
  int first_position;  // oldest position in the window
  int n_window;
  int n_keys;

  __device__ __forceinline__ explicit Attended(int position) {
    first_position = larger(0, position - Config::kWindow + 1);
    n_window = position - first_position + 1;
    const int visible = (position + 1) / Config::kRatio;
    int n_entries = 0;
    if constexpr (Config::kCompressed == Compressed::kListed) n_entries = smaller(visible, Config::kTopK);
    if constexpr (Config::kCompressed == Compressed::kAll) n_entries = visible;
    n_keys = n_window + n_entries;
  }

  // Split boundaries depend on the position and the number of splits only, never on the batch. With fewer tiles than
  // splits some ranges are empty.
  __device__ __forceinline__ TileRange range(int split, int splits) const {
    const int n_tiles = ceil_divide(n_keys, Config::kKeyTile);
    return {n_tiles * split / splits, n_tiles * (split + 1) / splits};
  }
};

// log2(e), rounded.
constexpr float kLog2E = 1.44269502162933349609375f;

// Rotation by minus the angle whose (cos, sin) is `turn`.
__device__ __forceinline__ float2 rotated_back(float2 pair, float2 turn) {
  return make_float2(__fmaf_rn(pair.y, turn.y, pair.x * turn.x), __fmaf_rn(-pair.x, turn.y, pair.y * turn.x));
}
#line 29 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/step_rows.cuh"
// What later steps need of a step, one token by one block: its key to the window ring of its sequence, c and g + ape to
// the state rings of the compressors. It happens after everything that reads the rings.
//
// Of two positions that share a row of a ring only the later is written, so the order of blocks does not matter.

// A row of c and g to its place in a state ring; a thread moves four columns at a time.
template <int kWidth, int kRows, int kRatio, int kThreads>
__device__ __forceinline__ void store_state(float* state, const float* from, const float* ape, int slot, int position) {
  static_assert(kWidth % 4 == 0, "whole vectors");
  float4* to = reinterpret_cast<float4*>(state + (int64_t{slot} * kRows + position % kRows) * (2 * kWidth));
  const float4* inputs = reinterpret_cast<const float4*>(from);
  const float4* biases = reinterpret_cast<const float4*>(ape + position % kRatio * kWidth);
#pragma unroll 4
  for (int i = threadIdx.x; i < kWidth / 4; i += kThreads) {
    const float4 c = inputs[i];
    const float4 g = inputs[kWidth / 4 + i];
    const float4 bias = biases[i];
    to[i] = c;
    to[kWidth / 4 + i] = make_float4(g.x + bias.x, g.y + bias.y, g.z + bias.z, g.w + bias.w);
  }
}

// Where the rows of a step lie, and the rings that they go to. `Rings` has the sizes.
struct StepRows {
  const bf16* kv_step;
  bf16* kv_ring;
  const float* cg;
  const float* ape;
  float* state;
  const float* index_cg;
  const float* index_ape;
  float* index_state;
  int64_t ld_cg;
  int64_t ld_index_cg;

  // Called by kThreads threads. The slot and position of `token` are its own.
  template <class Rings, int kThreads>
  __device__ __forceinline__ void store(const int* sequences, int token, int n_tokens, int slot, int position) const {
    // Tokens of a sequence are neighbours: the row is overwritten if the one `rows` further is still of the sequence.
    const auto is_last = [&](int rows) { return token + rows >= n_tokens || sequences[token + rows] != slot; };
    if (is_last(Rings::kWindow)) {
      const uint4* from = reinterpret_cast<const uint4*>(kv_step + int64_t{token} * Rings::kHeadDim);
      const int64_t row = int64_t{slot} * Rings::kWindow + position % Rings::kWindow;
      uint4* to = reinterpret_cast<uint4*>(kv_ring + row * Rings::kHeadDim);
      for (int i = threadIdx.x; i < Rings::kHeadDim / 8; i += kThreads) to[i] = from[i];
    }
    if constexpr (Rings::kStateWidth > 0) {
      if (is_last(Rings::kStateRows)) {
        store_state<Rings::kStateWidth, Rings::kStateRows, Rings::kStateRatio, kThreads>(
            state, cg + token * ld_cg, ape, slot, position);
      }
    }
    if constexpr (Rings::kIndexWidth > 0) {
      if (is_last(Rings::kIndexRows)) {
        store_state<Rings::kIndexWidth, Rings::kIndexRows, Rings::kIndexRatio, kThreads>(
            index_state, index_cg + token * ld_index_cg, index_ape, slot, position);
      }
    }
  }
};
#line 30 "templates/attend_combine/kernel.cu"

struct Config {
  static constexpr Compressed kCompressed = Compressed::kListed;
  static constexpr int kHeads = 64;
  static constexpr int kHeadDim = 512;
  static constexpr int kRopeDim = 64;   // last columns, rotated
  static constexpr int kWindow = 128;
  static constexpr int kRatio = 4;        // tokens of an entry
  static constexpr int kTopK = 512;         // length of a list
  static constexpr int kKeyTile = 64;   // splits end on such tiles
  static constexpr bool kStores = true;
  static constexpr int kStateWidth = 1024;  // what is stored, as in templates/store_step
  static constexpr int kStateRows = 8;
  static constexpr int kStateRatio = 4;
  static constexpr int kIndexWidth = 256;
  static constexpr int kIndexRows = 8;
  static constexpr int kIndexRatio = 4;
};
static_assert(Config::kRopeDim % 4 == 0, "a thread's columns are rotated, or they are not");

constexpr int kThreads = round_up(Config::kHeadDim / 4, 32);
constexpr int kBatch = 16;  // splits whose parts are under way together

// Four columns of a batch of splits.
struct Parts {
  float4 of[kBatch];

  __device__ __forceinline__ void load(const float* from, int64_t stride, int n_splits) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (i < n_splits) of[i] = *reinterpret_cast<const float4*>(from + i * stride);
    }
  }
};

// (maximum, sum) of a split, one in each lane.
__device__ __forceinline__ float2 load_statistic(const float2* statistics, int64_t rows, int split, int splits) {
  return split < splits ? statistics[split * rows] : make_float2(0.0f, 0.0f);
}

// Whether the split has keys; without them nothing was written for it.
__device__ __forceinline__ bool has_keys(const Attended<Config>& attended, int split, int splits) {
  const TileRange range = attended.range(split, splits);
  return split < splits && range.begin < range.end;
}

// The largest maximum over the splits that have keys, in every lane. `first` is the lane's one of the first batch.
__device__ __forceinline__ float largest_maximum(float2 first, const float2* statistics,
                                                 const Attended<Config>& attended, int64_t rows, int splits) {
  constexpr uint32_t kMinusInfinity = 0xFF800000u;
  int split = threadIdx.x % kBatch;
  float most = has_keys(attended, split, splits) ? first.x : __uint_as_float(kMinusInfinity);
  for (split += kBatch; split < splits; split += kBatch) {
    if (has_keys(attended, split, splits)) most = fmaxf(most, statistics[split * rows].x);
  }
  return lane_maximum(most, kBatch);
}

// Adds the weighed parts of a batch from split `begin` on. A lane makes the weight of one split for all lanes.
__device__ __forceinline__ void add_batch(float4& values, float& sum, const Parts& parts, float2 statistic,
                                          const Attended<Config>& attended, float most, int begin, int splits) {
  const float weight = exp2_defined(statistic.x - most);
  const unsigned with_keys = __ballot_sync(~0u, has_keys(attended, begin + threadIdx.x % kBatch, splits));
#pragma unroll
  for (int i = 0; i < kBatch; ++i) {
    if ((with_keys >> i & 1u) == 0) continue;
    const float weight_i = __shfl_sync(~0u, weight, i);
    sum = __fmaf_rn(weight_i, __shfl_sync(~0u, statistic.y, i), sum);
    values.x = __fmaf_rn(weight_i, parts.of[i].x, values.x);
    values.y = __fmaf_rn(weight_i, parts.of[i].y, values.y);
    values.z = __fmaf_rn(weight_i, parts.of[i].z, values.z);
    values.w = __fmaf_rn(weight_i, parts.of[i].w, values.w);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    attend_combine(const float* workspace, const float* sinks, const float2* rope, const int* positions, bf16* o,
                   const int* m_on_device, int m, int splits, const bf16* kv_step, bf16* kv_ring, const float* cg,
                   const float* ape, float* state, const float* index_cg, const float* index_ape, float* index_state,
                   const int* sequences, int64_t ld_cg, int64_t ld_index_cg) {
  launch_dependents();
  const bool is_storing = Config::kStores && blockIdx.y == Config::kHeads;
  const float sink = is_storing ? 0.0f : sinks[blockIdx.y] * kLog2E;
  const int token = blockIdx.x, column = threadIdx.x * 4;
  const int n_tokens = actual_tokens(m_on_device, m);
  const bool is_there = token < n_tokens, has_columns = column < Config::kHeadDim;
  // A row that is no token has any number there, which must not become an address.
  const int position = is_there ? of_step(positions, token) : 0;
  const int rotated = column - (Config::kHeadDim - Config::kRopeDim);
  // Asked for before the wait: lib/step_arrays.cuh.
  float4 turns = {};
  if (has_columns && rotated >= 0) {
    turns = *reinterpret_cast<const float4*>(rope + int64_t{position} * (Config::kRopeDim / 2) + rotated / 2);
  }
  wait_for_dependency();
  if (!is_there) return;
  // The last row of blocks has no head: it stores the step.
  if constexpr (Config::kStores) {
    if (is_storing) {
      const int slot = of_step(sequences, token);
      const StepRows rows{kv_step, kv_ring, cg, ape, state, index_cg, index_ape, index_state, ld_cg, ld_index_cg};
      rows.store<Config, kThreads>(sequences, token, n_tokens, slot, position);
      return;
    }
  }
  const int64_t rows = int64_t{m} * Config::kHeads;
  const int64_t row = int64_t{token} * Config::kHeads + blockIdx.y;
  const float2* statistics = reinterpret_cast<const float2*>(workspace + splits * rows * Config::kHeadDim) + row;
  workspace += row * Config::kHeadDim + column;
  Parts parts;
  parts.load(workspace, rows * Config::kHeadDim, has_columns ? splits : 0);
  const int batch_lane = threadIdx.x % kBatch;
  float2 statistic = load_statistic(statistics, rows, batch_lane, splits);
  const Attended<Config> attended(position);
  const float most = largest_maximum(statistic, statistics, attended, rows, splits);
  float4 values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float sum = 0.0f;
  add_batch(values, sum, parts, statistic, attended, most, 0, splits);
#pragma unroll 1
  for (int begin = kBatch; begin < splits; begin += kBatch) {
    parts.load(workspace + begin * rows * Config::kHeadDim, rows * Config::kHeadDim, has_columns ? splits - begin : 0);
    statistic = load_statistic(statistics, rows, begin + batch_lane, splits);
    add_batch(values, sum, parts, statistic, attended, most, begin, splits);
  }
  const float inverse = 1.0f / (sum + exp2_defined(sink - most));
  float2 left = make_float2(values.x * inverse, values.y * inverse);
  float2 right = make_float2(values.z * inverse, values.w * inverse);
  if (has_columns && rotated >= 0) {
    left = rotated_back(left, make_float2(turns.x, turns.y));
    right = rotated_back(right, make_float2(turns.z, turns.w));
  }
  if (!has_columns) return;
  const uint2 bits = make_uint2(pair_from_floats(left.x, left.y), pair_from_floats(right.x, right.y));
  *reinterpret_cast<uint2*>(o + row * Config::kHeadDim + column) = bits;
}
