$#-
  op: src/kernels/runner/streams.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/hc_pre for ${ arch.name }$. Do not edit.
//
// hc_pre: mixing values from the parts that hc_mix left, and x = rms(sum_j pre[j] * h[j]) * norm_weight.
//   m = sum of parts * rsqrt(mean square over all streams + eps)
//   pre[j] = sigmoid(m[j] * scale[0] + base[j]) + eps      post[j] = 2 * sigmoid(m[4 + j] * scale[1] + base[4 + j])
//   C[j][k] = m[8 + 4 j + k] * scale[2] + base[8 + 4 j + k], softmax over k, plus eps, then Sinkhorn
//
//   operand      shape                  in memory             written / read
//   streams      [m, 4, hidden]         Element, row-major    read once
//   partials     [kSplits, m, kRows + 1] f32                  read once
//   base, scale  [kRows], [3] or [1]    f32                   read, before the launch ahead has ended
//   norm_weight  [hidden]               f32                   as base
//   x            [m, hidden]            BF16, row-major       written
//   mix_out      [m, 20]                f32, post[4] C[4][4]  written; not by the head (kRows = 4)
//
//   block = kColumnThreads threads of eight columns each, and one warp that makes the mixing matrix meanwhile;
//   grid = tokens. Barrier 0 joins all once the parts are summed, barrier 1 the column threads around the norm.
//
// Sinkhorn keeps C as diag(u) * K * diag(v) and changes u and v in turn, four divisions a half round in place of
// sixteen: its 2 * kRounds steps depend on each other and are what a short step waits for.
// Exactness: f32, parts in ascending order within and over kWarps runs of them, one rounding of x at the end.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "arch/named_barrier.cuh"
#include "lib/bucket.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"

using Element = ${ op.element }$;

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
  static constexpr int kRows = ${ op.rows }$;
  static constexpr int kSplits = ${ op.splits }$;
  static constexpr int kRounds = ${ op.rounds }$;
  static constexpr float kNormEpsilon = ${ op.norm_epsilon }$;
  static constexpr float kHcEpsilon = ${ op.hc_epsilon }$;
};

constexpr bool kIsHead = Config::kRows == 4;
constexpr int kSums = Config::kRows + 1;
constexpr int kColumnThreads = round_up(Config::kHidden / 8, 32);
constexpr int kThreads = kColumnThreads + 32;
constexpr int kWarps = kThreads / 32;
constexpr int kRun = ceil_divide(Config::kSplits, kWarps);  // parts that a warp sums
static_assert(kThreads <= 1024 && Config::kHidden % 8 == 0, "a thread has eight columns");

// Mixing values of the token before they are squashed: lane i has value i. Every warp gets them.
__device__ __forceinline__ float mixing_value(const float* partials, float (&shared)[kWarps][32], float scale,
                                              float base, int token, int m) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float part = 0.0f;
#pragma unroll 4
  for (int i = 0; i < kRun; ++i) {
    const int split = warp * kRun + i;
    if (split < Config::kSplits && lane < kSums) part += partials[(int64_t{split} * m + token) * kSums + lane];
  }
  shared[warp][lane] = part;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int run = 0; run < ceil_divide(Config::kSplits, kRun); ++run) sum += shared[run][lane];
  const float mean_square = __shfl_sync(~0u, sum, Config::kRows) / (4.0f * Config::kHidden);
  return sum * reciprocal_root(mean_square + Config::kNormEpsilon) * scale + base;
}

// C after Sinkhorn from its sixteen logits, which lanes 8 to 23 have. Every lane computes all of it.
__device__ __forceinline__ void mixing_matrix(float (&c)[4][4], float value) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int k = 0; k < 4; ++k) c[j][k] = __shfl_sync(~0u, value, 8 + 4 * j + k);
    const float largest = fmaxf(fmaxf(c[j][0], c[j][1]), fmaxf(c[j][2], c[j][3]));
#pragma unroll
    for (int k = 0; k < 4; ++k) c[j][k] = exp_defined(c[j][k] - largest);
    const float sum = c[j][0] + c[j][1] + c[j][2] + c[j][3];
#pragma unroll
    for (int k = 0; k < 4; ++k) c[j][k] = c[j][k] / sum + Config::kHcEpsilon;
  }
  float u[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  float v[4] = {1.0f, 1.0f, 1.0f, 1.0f};
#pragma unroll 1
  for (int round = 0; round < Config::kRounds; ++round) {
    // Rows, but not in the first round.
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float sum = c[j][0] * v[0];
#pragma unroll
      for (int k = 1; k < 4; ++k) sum = __fmaf_rn(c[j][k], v[k], sum);
      if (round > 0) u[j] = u[j] * __frcp_rn(__fmaf_rn(u[j], sum, Config::kHcEpsilon));
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float sum = c[0][k] * u[0];
#pragma unroll
      for (int j = 1; j < 4; ++j) sum = __fmaf_rn(c[j][k], u[j], sum);
      v[k] = v[k] * __frcp_rn(__fmaf_rn(v[k], sum, Config::kHcEpsilon));
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int k = 0; k < 4; ++k) c[j][k] = u[j] * c[j][k] * v[k];
  }
}

// Writes post and C, by one warp.
__device__ __forceinline__ void store_mix(float* mix, float value, int lane) {
  float c[4][4];
  mixing_matrix(c, value);
  const float post = 2.0f * sigmoid(value);
  float out = __shfl_sync(~0u, post, 4 + lane % 4);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (lane == 4 + i) out = c[i / 4][i % 4];
  }
  if (lane < 20) mix[lane] = out;
}

// Weighs the streams, norms the result and stores it; `pre` of stream j is in lane j.
__device__ __forceinline__ void store_input(bf16* x, const float (&h)[4][8], const float (&weight)[8], float pre,
                                            float* shared, int column) {
  float mixed[8] = {};
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float pre_j = __shfl_sync(~0u, pre, j);
#pragma unroll
    for (int i = 0; i < 8; ++i) mixed[i] = __fmaf_rn(pre_j, h[j][i], mixed[i]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) squares = __fmaf_rn(mixed[i], mixed[i], squares);
  const auto join = [] { join_threads(1, kColumnThreads); };
  const float sum = thread_sum(squares, shared, kColumnThreads / 32, join);
  const float factor = reciprocal_root(sum / Config::kHidden + Config::kNormEpsilon);
#pragma unroll
  for (int i = 0; i < 8; ++i) mixed[i] = mixed[i] * factor * weight[i];
  if (column < Config::kHidden) store_eight(x + column, mixed);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    hc_pre(const Element* streams, const float* partials, const float* base, const float* scale,
           const float* norm_weight, bf16* x, float* mix_out, const int* m_on_device, int m) {
  __shared__ float parts[kWarps][32];
  __shared__ float squares[kWarps];
  launch_dependents();
  const int lane = threadIdx.x % 32, column = threadIdx.x * 8, token = blockIdx.x;
  const bool has_columns = column < Config::kHidden;
  float weight[8] = {};
  if (has_columns) load_eight(weight, norm_weight + column);
  const float own_base = lane < Config::kRows ? base[lane] : 0.0f;
  const float own_scale = scale[kIsHead || lane < 4 ? 0 : lane < 8 ? 1 : 2];
  wait_for_dependency();
  if (token >= actual_tokens(m_on_device, m)) return;
  float h[4][8] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (has_columns) load_eight(h[j], streams + (int64_t{token} * 4 + j) * Config::kHidden + column);
  }
  const float value = mixing_value(partials, parts, own_scale, own_base, token, m);
  if (threadIdx.x >= kColumnThreads) {
    if constexpr (!kIsHead) store_mix(mix_out + int64_t{token} * 20, value, lane);
    return;
  }
  const float pre = sigmoid(value) + Config::kHcEpsilon;
  store_input(x + int64_t{token} * Config::kHidden, h, weight, pre, squares, column);
}
