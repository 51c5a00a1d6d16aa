$#-
  op: src/kernels/runner/fake_quantise.rs   arch: templates/arch/   (tokens and strides are run-time arguments)
-#$
// Generated from templates/fake_quantise for ${ arch.name }$. Do not edit.
//
// fake_quantise: out = BF16 of the NVFP4 values of x, by the definition of src/quant/activation.rs.
//   block scale = e4m3(amax_16 / (6 * scale)), value = e2m1(x / (block scale * scale)) * block scale * scale
//
//   operand       shape             in memory                        written / read
//   x             [rows, k]         BF16, rows ldx apart             read twice (the second time from L1)
//   scales        [1] or [indices]  f32, or bits of an amax          read; null when each row makes its own
//   scale_of_row  [rows]            int32, or null                   index of the row's scale; below 0: leave it
//   out           [rows, k]         BF16, rows ldo apart; may be x   written
//   amax_seen     [1] or [indices]  bits of f32, or null             raised to the amax of the row
//   counters      [4]               uint32                           raised: blocks, saturated blocks, non-finite
//                                                                    values, complement of the place row * k + column
//                                                                    of the first
//
//   block = kThreads threads, one row; grid = rows; shared memory: a maximum a warp
//
// NaN and infinities take no part in an amax; they are counted, and stay what they are, so that the product shows them.
// A scale that is no positive finite number makes its rows NaN.
// Bits: IEEE division and round-to-nearest only, compiled with --fmad=false; one rounding to BF16.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"
#include "lib/entry_rounding.cuh"

struct Config {
  static constexpr int kK = ${ op.k }$;
  static constexpr int kRowsPerToken = ${ op.rows_per_token }$;
  static constexpr bool kIsPerToken = ${ op.is_per_token }$;
  static constexpr bool kIsPerTensor = ${ op.is_per_tensor }$;
  static constexpr int kThreads = ${ op.threads }$;
};
static_assert(Config::kK % 16 == 0, "a row is whole blocks");

constexpr int kBlocks = Config::kK / 16;
constexpr float kAmaxFloor = 1e-30f;
constexpr float kSaturatedAbove = 448.0f + 1.0f / 4096.0f;

struct Sixteen {
  float values[2][8];

  __device__ __forceinline__ void load(const bf16* from) {
    load_eight(values[0], from);
    load_eight(values[1], from + 8);
  }

  __device__ __forceinline__ float amax() const {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) largest = fmaxf(largest, finite_magnitude(values[i / 8][i % 8]));
    return largest;
  }

  // Counts what is not finite; `place` is that of the first value.
  __device__ __forceinline__ void count(unsigned* counters, uint32_t place) const {
    uint32_t n_bad = 0, first = 0;
#pragma unroll
    for (int i = 15; i >= 0; --i) {
      if (is_finite(values[i / 8][i % 8])) continue;
      ++n_bad;
      first = i;
    }
    if (n_bad == 0) return;
    atomicAdd(counters + 2, n_bad);
    atomicMax(counters + 3, ~(place + first));
  }

  // Rounds to the values of one block; whether its scale would have been above what E4M3 holds.
  __device__ __forceinline__ bool round(float scale) {
    const float wanted = amax() / (6.0f * scale);
    const float block_scale = nearest_e4m3(wanted);
    const float divisor = block_scale * scale;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float& value = values[i / 8][i % 8];
      if (!is_finite(value)) continue;
      value = block_scale == 0.0f ? 0.0f : nearest_e2m1(value / divisor) * block_scale * scale;
    }
    return wanted > kSaturatedAbove;
  }

  __device__ __forceinline__ void store(bf16* to) const {
    store_eight(to, values[0]);
    store_eight(to + 8, values[1]);
  }
};

// Largest value of the block of threads, for all of them.
__device__ __forceinline__ float thread_maximum(float value) {
  __shared__ float warps[Config::kThreads / 32];
  value = lane_maximum(value, 32);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float maximum = 0.0f;
  for (int warp = 0; warp < Config::kThreads / 32; ++warp) maximum = fmaxf(maximum, warps[warp]);
  return maximum;
}

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    fake_quantise(const bf16* x, bf16* out, const float* scales, const int* scale_of_row, unsigned* amax_seen,
                  unsigned* counters, const int* m_on_device, int64_t ldx, int64_t ldo, int m) {
  launch_dependents();
  wait_for_dependency();
  const int row = blockIdx.x;
  if (row >= actual_tokens(m_on_device, m) * Config::kRowsPerToken) return;
  const int index = scale_of_row == nullptr ? 0 : scale_of_row[row];
  if (index < 0) return;
  float own_amax = 0.0f;
  for (int b = threadIdx.x; b < kBlocks; b += Config::kThreads) {
    Sixteen block;
    block.load(x + row * ldx + b * 16);
    own_amax = fmaxf(own_amax, block.amax());
    block.count(counters, static_cast<uint32_t>(row) * Config::kK + b * 16);
  }
  const float amax = thread_maximum(own_amax);
  if (threadIdx.x == 0) {
    atomicAdd(counters, static_cast<unsigned>(kBlocks));
    if (amax_seen != nullptr) atomicMax(amax_seen + index, __float_as_uint(amax));
  }
  float scale;
  if constexpr (Config::kIsPerToken) {
    scale = fmaxf(amax, kAmaxFloor) / 2688.0f;
  } else if constexpr (Config::kIsPerTensor) {
    scale = fmaxf(scales[0], kAmaxFloor) / 2688.0f;
  } else {
    scale = scales[index];
    if (!(scale > 0.0f) || !is_finite(scale)) scale = no_value();
  }
  for (int b = threadIdx.x; b < kBlocks; b += Config::kThreads) {
    Sixteen block;
    block.load(x + row * ldx + b * 16);
    if (block.round(scale)) atomicAdd(counters + 1, 1u);
    block.store(out + row * ldo + b * 16);
  }
}
