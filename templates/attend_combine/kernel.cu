$#-
  op: src/kernels/runner/attend.rs   arch: templates/arch/   (tokens and splits are run-time arguments)
-#$
// Generated from templates/attend_combine for ${ arch.name }$. Do not edit.
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
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/math.cuh"
#include "lib/bucket.cuh"
#include "lib/step_arrays.cuh"
#include "lib/lanes.cuh"
#include "lib/attended.cuh"
#include "lib/step_rows.cuh"

struct Config {
  static constexpr Compressed kCompressed = ${ op.compressed }$;
  static constexpr int kHeads = ${ op.heads }$;
  static constexpr int kHeadDim = ${ op.head_dim }$;
  static constexpr int kRopeDim = ${ op.rope_dim }$;   // last columns, rotated
  static constexpr int kWindow = ${ op.window }$;
  static constexpr int kRatio = ${ op.ratio }$;        // tokens of an entry
  static constexpr int kTopK = ${ op.top_k }$;         // length of a list
  static constexpr int kKeyTile = ${ op.key_tile }$;   // splits end on such tiles
  static constexpr bool kStores = ${ op.stores }$;
  static constexpr int kStateWidth = ${ op.state_width }$;  // what is stored, as in templates/store_step
  static constexpr int kStateRows = ${ op.state_rows }$;
  static constexpr int kStateRatio = ${ op.state_ratio }$;
  static constexpr int kIndexWidth = ${ op.index_width }$;
  static constexpr int kIndexRows = ${ op.index_rows }$;
  static constexpr int kIndexRatio = ${ op.index_ratio }$;
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
