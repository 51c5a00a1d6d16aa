$#-
  op: src/kernels/runner/norms.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/qkv_norm for ${ arch.name }$. Do not edit.
//
// qkv_norm: qr = rms(q) * q_norm and kv = rotate(rms(k) * kv_norm), where [q | k] is a row of the fused projection.
//
//   operand   shape                         in memory                          written / read
//   qkv       [m, q_rank + head_dim]        BF16, row-major                    read once
//   q_norm    [q_rank]                      f32                                read before the launch ahead has ended
//   kv_norm   [head_dim]                    f32                                as q_norm
//   rope      [positions, rope_dim / 2]     float2 (cos, sin)                  as q_norm, a row a token
//   positions [m]                           int32                              as q_norm
//   qr        [m, q_rank]                   BF16                               written
//   kv_step   [m, head_dim]                 BF16                               written: keys, and values, of this step
//
//   block = threads of eight columns each; grid = (tokens, 2): block (t, 0) has the query, (t, 1) the key
//
// The last rope_dim elements of a key are rotated. With kHasFakeFp8 those before them are rounded to E4M3 in groups of
// 64 with the power-of-two scale 2^ceil(log2(max(amax, 1e-4) / 448)), which BF16 holds exactly; what is not finite
// stays as it is and takes no part in the amax.
// Exactness: f32, rounded once, when stored.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/step_arrays.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"
#include "lib/rotary.cuh"
#include "lib/entry_rounding.cuh"

struct Config {
  static constexpr int kQRank = ${ op.q_rank }$;
  static constexpr int kHeadDim = ${ op.head_dim }$;
  static constexpr int kRopeDim = ${ op.rope_dim }$;
  static constexpr float kNormEpsilon = ${ op.norm_epsilon }$;
  static constexpr bool kHasFakeFp8 = ${ op.has_fake_fp8 }$;
  static constexpr int kThreads = ${ op.threads }$;
};

constexpr int kPlainDim = Config::kHeadDim - Config::kRopeDim;  // elements of a key that are not rotated
static_assert(Config::kQRank % 8 == 0 && Config::kHeadDim % 8 == 0 && Config::kRopeDim % 8 == 0, "eight to a thread");
static_assert(Config::kThreads * 8 >= Config::kQRank && Config::kThreads * 8 >= Config::kHeadDim, "a row to a block");

// Rounds to E4M3 with the scale of the group, which is eight neighbouring lanes. The last group may be shorter: lanes
// behind it have zeros.
__device__ __forceinline__ void round_to_e4m3(float (&values)[8]) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax = fmaxf(amax, finite_magnitude(values[i]));
  const float scale = power_of_two(ceil_log2(fmaxf(lane_maximum(amax, 8), 1e-4f) / 448.0f));
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (is_finite(values[i])) values[i] = nearest_e4m3(values[i] / scale) * scale;
  }
}

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    qkv_norm(const bf16* qkv, const float* q_norm, const float* kv_norm, const float2* rope, const int* positions,
             bf16* qr, bf16* kv_step, const int* m_on_device, int m) {
  __shared__ float squares[32];
  launch_dependents();
  const int token = blockIdx.x, column = threadIdx.x * 8;
  const bool is_key = blockIdx.y == 1;
  const int width = is_key ? Config::kHeadDim : Config::kQRank;
  float weight[8] = {};
  if (column < width) load_eight(weight, (is_key ? kv_norm : q_norm) + column);
  const bool is_there = token < actual_tokens(m_on_device, m);
  const bool is_rotated = is_there && is_key && column >= kPlainDim && column < width;
  float2 turns[4] = {};
  if (is_rotated) {
    const float2* of_position = rope + int64_t{of_step(positions, token)} * (Config::kRopeDim / 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) turns[i] = of_position[(column - kPlainDim) / 2 + i];
  }
  wait_for_dependency();
  if (!is_there) return;
  float values[8] = {};
  if (column < width) {
    const bf16* row = qkv + int64_t{token} * (Config::kQRank + Config::kHeadDim);
    load_eight(values, row + (is_key ? Config::kQRank : 0) + column);
  }
  float own = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) own = __fmaf_rn(values[i], values[i], own);
  const auto join = [] { __syncthreads(); };
  const float mean_square = thread_sum(own, squares, Config::kThreads / 32, join) / static_cast<float>(width);
  const float factor = reciprocal_root(mean_square + Config::kNormEpsilon);
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = values[i] * factor * weight[i];
  if (is_key) {
    if (is_rotated) rotate_pairs(values, turns, 0);
    if constexpr (Config::kHasFakeFp8) {
      float rounded[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) rounded[i] = column < kPlainDim ? values[i] : 0.0f;
      round_to_e4m3(rounded);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = column < kPlainDim ? rounded[i] : values[i];
    }
  }
  bf16* to = is_key ? kv_step + int64_t{token} * Config::kHeadDim : qr + int64_t{token} * Config::kQRank;
  if (column < width) store_eight(to + column, values);
}
