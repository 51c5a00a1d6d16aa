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
//   block = kColumnThreads threads of eight columns each, and one warp that makes the mixing matrices meanwhile;
//   grid = groups of kTokens tokens
//
//   one token (kTokens = 1): all warps sum the parts together, a run of them each, and every warp squashes the sums
//   kTokens of them: a warp sums and squashes one token, and the streams of the next token are on their way while one
//     is normed; a lane of the last warp makes the matrix of one token
//
//   barrier  joins                                         announces
//   0        all threads, once                             the parts, or mixing values, are in shared memory
//   1        the column threads, once a token              the squares of each warp are
//
// Without kBalances C is stored as softmax and eps leave it, and a later launch, which has time, does the Sinkhorn of
// lib/sinkhorn.cuh: what a short step waits for here is x, and the matrix is not used before the sublayer has ended.
// Everything of the first token is asked for before anything is awaited, even its streams if it is no token.
// Exactness: f32, parts in ascending order within and over runs of them, one rounding of x at the end.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "arch/named_barrier.cuh"
#include "arch/reciprocal.cuh"
#include "lib/bucket.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"
#include "lib/reciprocal.cuh"
#include "lib/sinkhorn.cuh"

using Element = ${ op.element }$;

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
  static constexpr int kRows = ${ op.rows }$;
  static constexpr int kSplits = ${ op.splits }$;
  static constexpr int kTokens = ${ op.tokens }$;  // of a block
  static constexpr int kRounds = ${ op.rounds }$;
  static constexpr bool kBalances = ${ op.balances }$;
  static constexpr float kNormEpsilon = ${ op.norm_epsilon }$;
  static constexpr float kHcEpsilon = ${ op.hc_epsilon }$;
};

constexpr bool kIsHead = Config::kRows == 4;
constexpr int kSums = Config::kRows + 1;
constexpr int kTokens = Config::kTokens;
constexpr int kColumnThreads = round_up(Config::kHidden / 8, 32);
constexpr int kColumnWarps = kColumnThreads / 32;
constexpr int kThreads = kColumnThreads + 32;
constexpr int kWarps = kThreads / 32;
// Parts that a warp sums, and warps that sum those of a token.
constexpr int kRun = kTokens == 1 ? ceil_divide(Config::kSplits, kWarps) : Config::kSplits;
constexpr int kRuns = ceil_divide(Config::kSplits, kRun);
static_assert(kThreads <= 1024 && Config::kHidden % 8 == 0, "a thread has eight columns");
static_assert(kTokens <= 32, "a lane of the last warp to a token");

struct Shared {
  float squares[2][kColumnWarps];
  float runs[kRuns][32];      // of the one token
  float4 values[kTokens][8];  // with more: pre, post, and the rows of K of each token
};

struct Operands {
  const Element* streams;
  const float* partials;
  const float* norm_weight;
  bf16* x;
};

// Eight parts of a sum of one token from split `begin` on, zeros beyond `end`; lane i has those of value i.
__device__ __forceinline__ void load_parts(float (&parts)[8], const float* partials, int begin, int end, int token,
                                           int m, int lane) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const bool is_there = begin + i < end && token < m && lane < kSums;
    parts[i] = is_there ? partials[(int64_t{begin + i} * m + token) * kSums + lane] : 0.0f;
  }
}

__device__ __forceinline__ float added(float sum, const float (&parts)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += parts[i];
  return sum;
}

// Values 0 to 3 become pre, 4 to 7 post and 8 to 23 the rows of K, in the lanes of these numbers.
__device__ __forceinline__ float squashed(float sum, float scale, float base, int lane) {
  const float mean_square = __shfl_sync(~0u, sum, Config::kRows) / (4.0f * Config::kHidden);
  const float value = sum * reciprocal_root(mean_square + Config::kNormEpsilon) * scale + base;
  const float weight = sigmoid(value);
  if constexpr (kIsHead) return weight + Config::kHcEpsilon;
  // Softmax over four neighbouring lanes; fmaxf drops a NaN, the exponential brings it back.
  const float power = exp_defined(value - lane_maximum(value, 4));
  float total = power + __shfl_xor_sync(~0u, power, 1);
  total += __shfl_xor_sync(~0u, total, 2);
  const float share = __fmaf_rn(power, reciprocal_in_range(total), Config::kHcEpsilon);
  return lane < 4 ? weight + Config::kHcEpsilon : lane < 8 ? 2.0f * weight : share;
}

// Writes post and the mixing matrix of the tokens of the block: a lane to each, or all lanes to the only one.
__device__ __forceinline__ void store_mixes(float* mix_out, const Shared& shared, float value, int first, int n_tokens,
                                            int lane) {
  float post[4], k[4][4];
  if constexpr (kTokens == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) post[i] = __shfl_sync(~0u, value, 4 + i);
#pragma unroll
    for (int i = 0; i < 16; ++i) k[i / 4][i % 4] = __shfl_sync(~0u, value, 8 + i);
  } else {
    const float4* values = shared.values[smaller(lane, kTokens - 1)] + 1;
    unpack(post, values[0]);
#pragma unroll
    for (int j = 0; j < 4; ++j) unpack(k[j], values[1 + j]);
  }
  if constexpr (Config::kBalances) balance<Config>(k);
  if (lane >= n_tokens) return;
  float4* mix = reinterpret_cast<float4*>(mix_out + int64_t{first + lane} * 20);
  mix[0] = make_float4(post[0], post[1], post[2], post[3]);
#pragma unroll
  for (int j = 0; j < 4; ++j) mix[1 + j] = make_float4(k[j][0], k[j][1], k[j][2], k[j][3]);
}

// The sum over the column threads, by a butterfly over lanes and one over warps. The caller alternates `turn`, so that
// one barrier is enough.
__device__ __forceinline__ float column_sum(float value, Shared& shared, int turn) {
  value = lane_sum(value);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) shared.squares[turn][warp] = value;
  join_threads(1, kColumnThreads);
  return lane_sum(lane < kColumnWarps ? shared.squares[turn][lane] : 0.0f);
}

// The streams of one token at a thread's columns.
__device__ __forceinline__ void load_streams(float (&h)[4][8], const Element* streams, int token, int column) {
  streams += int64_t{token} * 4 * Config::kHidden + column;
#pragma unroll
  for (int j = 0; j < 4; ++j) load_eight(h[j], streams + j * Config::kHidden);
}

// The input of the sublayer for each token of the block. `h` holds the streams of the first; with one token `weight` is
// that of the norm, and `value` has pre in lanes 0 to 3.
__device__ __forceinline__ void store_inputs(const Operands& operands, float (&h)[4][8], float (&weight)[8],
                                             Shared& shared, float value, int first, int n_tokens) {
  const int column = threadIdx.x * 8;
  const bool has_columns = Config::kHidden % 256 == 0 || column < Config::kHidden;
#pragma unroll 1
  for (int t = 0; t < n_tokens; ++t) {
    float pre[4];
    if constexpr (kTokens == 1) {
#pragma unroll
      for (int j = 0; j < 4; ++j) pre[j] = __shfl_sync(~0u, value, j);
    } else {
      unpack(pre, shared.values[t][0]);
    }
    float mixed[8] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 8; ++i) mixed[i] = __fmaf_rn(pre[j], h[j][i], mixed[i]);
    }
    if (kTokens > 1 && has_columns && t + 1 < n_tokens) load_streams(h, operands.streams, first + t + 1, column);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = __fmaf_rn(mixed[i], mixed[i], squares);
    const float mean_square = column_sum(squares, shared, t % 2) / Config::kHidden;
    // From L1: in registers they would leave no room for the streams that are on their way.
    if (kTokens > 1 && has_columns) load_eight(weight, operands.norm_weight + column);
    const float factor = reciprocal_root(mean_square + Config::kNormEpsilon);
#pragma unroll
    for (int i = 0; i < 8; ++i) mixed[i] = mixed[i] * factor * weight[i];
    if (has_columns) store_eight(operands.x + int64_t{first + t} * Config::kHidden + column, mixed);
  }
}

// The sum of the parts from split `begin` on of one token, the first eight of which are loaded.
__device__ __forceinline__ float sum_of_parts(float (&parts)[8], const float* partials, int begin, int end, int token,
                                              int m, int lane) {
  float sum = added(0.0f, parts);
  if constexpr (kRun > 8) {
#pragma unroll 1
    for (int split = begin + 8; split < end; split += 8) {
      load_parts(parts, partials, split, end, token, m, lane);
      sum = added(sum, parts);
    }
  }
  return sum;
}

// Mixing values of the one token, in every warp; or of all tokens, in shared memory. In `h` the streams of the first
// token are on their way when it returns. All threads have been joined.
__device__ __forceinline__ float mixing_values(const Operands& operands, float (&h)[4][8], Shared& shared, float scale,
                                               float base, int first, int m) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int begin = kTokens == 1 ? warp * kRun : 0, end = smaller(begin + kRun, Config::kSplits);
  const int token = kTokens == 1 ? first : first + warp;
  float parts[8];
  // Before the streams, which are many times as many bytes and are needed later.
  load_parts(parts, operands.partials, begin, end, token, m, lane);
  if (threadIdx.x * 8 < Config::kHidden) load_streams(h, operands.streams, first, threadIdx.x * 8);
  float sum = sum_of_parts(parts, operands.partials, begin, end, token, m, lane);
  if constexpr (kTokens == 1) {
    if (warp < kRuns) shared.runs[warp][lane] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int run = 0; run < kRuns; ++run) sum += shared.runs[run][lane];
    return squashed(sum, scale, base, lane);
  }
#pragma unroll 1
  for (int t = warp; t < kTokens; t += kWarps) {
    if (t != warp) {
      load_parts(parts, operands.partials, begin, end, first + t, m, lane);
      sum = sum_of_parts(parts, operands.partials, begin, end, first + t, m, lane);
    }
    reinterpret_cast<float*>(shared.values[t])[lane] = squashed(sum, scale, base, lane);
  }
  __syncthreads();
  return 0.0f;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    hc_pre(const Element* streams, const float* partials, const float* base, const float* scale,
           const float* norm_weight, bf16* x, float* mix_out, const int* m_on_device, int m) {
  __shared__ Shared shared;
  launch_dependents();
  const Operands operands{streams, partials, norm_weight, x};
  const int lane = threadIdx.x % 32, column = threadIdx.x * 8, first = blockIdx.x * kTokens;
  float weight[8] = {};
  if (kTokens == 1 && column < Config::kHidden) load_eight(weight, norm_weight + column);
  const float own_base = lane < Config::kRows ? base[lane] : 0.0f;
  const float own_scale = scale[kIsHead || lane < 4 ? 0 : lane < 8 ? 1 : 2];
  const int n_tokens = smaller(kTokens, actual_tokens(m_on_device, m) - first);
  wait_for_dependency();
  float h[4][8] = {};
  const float value = mixing_values(operands, h, shared, own_scale, own_base, first, m);
  if (n_tokens <= 0) return;
  if (threadIdx.x < kColumnThreads) {
    store_inputs(operands, h, weight, shared, value, first, n_tokens);
  } else if constexpr (!kIsHead) {
    store_mixes(mix_out, shared, value, first, n_tokens, lane);
  }
}
