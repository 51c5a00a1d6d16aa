$#-
  op: src/kernels/runner/compress.rs   arch: templates/arch/   (tokens, strides and pages are run-time arguments)
-#$
// Generated from templates/compress for ${ arch.name }$. Do not edit.
//
// compress: entry w = round(rotate(RMS(z) * norm, w * ratio)) with z[d] = sum_s p_s c_s[d], p = softmax_s(g_s[d] +
// ape), over the tokens s of the entry, for each channel d. With two series an entry also sees the window before its
// own, through the first half of the columns. A block whose token closes no entry leaves.
//
//   operand   shape                         in memory                          written / read
//   cg        [m, 2 * width]                f32, stride ld_cg: c, then g       rows of this step
//   state     [slots, rows, 2 * width]      f32: c, then g + ape; p % rows     rows of earlier steps
//   ape       [ratio, width]                f32, added to g of a token         read
//   norm      [head_dim]                    f32                                read
//   rope      [positions, rope_dim / 2]     f32 pairs (cos, sin)               read
//   table     [slots, max_pages]            int32, pages of entry w / 64       read
//   positions, sequences    [m]             int32, of each token               read before the launch ahead has ended
//   step_start, first_row   [slots]         int32, position and row of the first token of a sequence in the step
//   pool      [pages, 64, head_dim]         BF16                               one entry written
//
//   block = kParts x head_dim threads: a channel each, parts share the tokens of an entry; grid = tokens
//   shared memory: maxima and sums of the parts, the entry, a number a warp
//
// Exactness: f32, parts in ascending order, one rounding when the entry is stored. NaN and infinities stay: they take
// no part in the scale of a group and are not quantised.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/math.cuh"
#include "lib/bucket.cuh"
#include "lib/step_arrays.cuh"
#include "lib/entry_rounding.cuh"

enum class Rounding { kBf16, kFakeFp8, kHadamardMxfp4 };

struct Config {
  static constexpr int kHeadDim = ${ op.head_dim }$;
  static constexpr int kRopeDim = ${ op.rope_dim }$;          // last columns, rotated
  static constexpr int kRatio = ${ op.ratio }$;               // tokens of an entry
  static constexpr int kSeries = ${ op.series }$;             // 2: entries overlap
  static constexpr int kPageEntries = ${ op.page_entries }$;
  static constexpr Rounding kRounding = ${ op.rounding }$;
  static constexpr int kParts = ${ op.parts }$;               // threads of a channel
};

constexpr int kWidth = Config::kSeries * Config::kHeadDim;
constexpr int kRows = Config::kSeries * Config::kRatio;  // tokens that an entry sees, and rows of the state ring
constexpr int kRowsOfPart = kRows / Config::kParts;
constexpr int kThreads = Config::kParts * Config::kHeadDim;
constexpr int kEntryWarps = Config::kHeadDim / 32;
static_assert(kRows % Config::kParts == 0 && Config::kHeadDim % 32 == 0, "whole parts, and whole warps in each");

// What a token gives to one channel.
struct Input {
  float c;
  float gate;
};

struct Inputs {
  const float* cg;     // row of the step's first position of this sequence
  const float* ape;
  const float* state;  // of its slot
  int64_t ld_cg;
  int step_start;

  __device__ __forceinline__ Input at(int position, int column) const {
    if (position >= step_start) {
      const float* row = cg + (position - step_start) * ld_cg + column;
      return {row[0], row[kWidth] + ape[position % Config::kRatio * kWidth + column]};
    }
    const float* row = state + int64_t{position % kRows} * (2 * kWidth) + column;
    return {row[0], row[kWidth]};
  }
};

// Numbers of one block.
struct Shared {
  float maxima[Config::kParts][Config::kHeadDim];
  float2 sums[Config::kParts][Config::kHeadDim];
  float entry[Config::kHeadDim];
  float of_warp[32];
};

// z of this thread's channel: the softmax over the entry's tokens, each part its own tokens.
__device__ __forceinline__ float pooled(Shared& shared, const Inputs& inputs, int entry, int part, int channel) {
  constexpr float kLog2E = 1.44269502162933349609375f;
  const int first_position = (entry + 1 - Config::kSeries) * Config::kRatio;  // below 0: absent
  const auto column_of = [&](int row) { return row / Config::kRatio * Config::kHeadDim % kWidth + channel; };
  // The gates are read twice, from L2 the second time: 64 of them would not fit in the registers of 1,024 threads.
  float most = -__int_as_float(0x7F800000);
#pragma unroll 8
  for (int i = 0; i < kRowsOfPart; ++i) {
    const int row = part * kRowsOfPart + i;
    if (first_position + row >= 0) most = fmaxf(most, inputs.at(first_position + row, column_of(row)).gate);
  }
  shared.maxima[part][channel] = most;
  __syncthreads();
  for (int p = 0; p < Config::kParts; ++p) most = fmaxf(most, shared.maxima[p][channel]);
  float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 8
  for (int i = 0; i < kRowsOfPart; ++i) {
    const int row = part * kRowsOfPart + i;
    if (first_position + row < 0) continue;
    const Input input = inputs.at(first_position + row, column_of(row));
    const float share = exp2_defined((input.gate - most) * kLog2E);
    sum = make_float2(sum.x + share, __fmaf_rn(share, input.c, sum.y));
  }
  shared.sums[part][channel] = sum;
  __syncthreads();
  float2 total = make_float2(0.0f, 0.0f);
  for (int p = 0; p < Config::kParts; ++p) {
    total = make_float2(total.x + shared.sums[p][channel].x, total.y + shared.sums[p][channel].y);
  }
  return total.y / total.x;
}

// z over the root of its mean square, times the norm's weight. All parts compute the same.
__device__ __forceinline__ float normalised(Shared& shared, float z, float weight, float eps, int part, int channel) {
  float square = z * z;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) square += __shfl_xor_sync(0xFFFFFFFFu, square, distance);
  if (part == 0 && channel % 32 == 0) shared.of_warp[channel / 32] = square;
  __syncthreads();
  float total = 0.0f;
#pragma unroll
  for (int w = 0; w < kEntryWarps; ++w) total += shared.of_warp[w];
  return z * (1.0f / sqrtf(total / static_cast<float>(Config::kHeadDim) + eps)) * weight;
}

// Rotation of the last columns by the angles of `position`; the neighbour holds the other number of a pair.
__device__ __forceinline__ float rotated(float value, const float2* rope, int position, int channel) {
  const float other = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  const int column = channel - (Config::kHeadDim - Config::kRopeDim);
  if (column < 0) return value;
  const float2 turn = rope[int64_t{position} * (Config::kRopeDim / 2) + column / 2];
  return channel % 2 == 0 ? __fmaf_rn(-other, turn.y, value * turn.x) : __fmaf_rn(other, turn.y, value * turn.x);
}

// To E4M3 and back, in groups of 64 of the columns that are not rotated.
__device__ __forceinline__ float through_fp8(Shared& shared, float value, int part, int channel) {
  const bool is_quantised = channel < Config::kHeadDim - Config::kRopeDim && is_finite_number(value);
  float amax = is_quantised ? fabsf(value) : 0.0f;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
  __syncthreads();  // everyone has read the warps' squares
  if (part == 0 && channel % 32 == 0) shared.of_warp[channel / 32] = amax;
  __syncthreads();
  const int warp = channel / 32;
  amax = fmaxf(amax, shared.of_warp[(warp ^ 1) < kEntryWarps ? warp ^ 1 : warp]);
  const int exponent = ceil_log2(fmaxf(amax, 1e-4f) / 448.0f);
  return is_quantised ? nearest_e4m3(value * power_of_two(-exponent)) * power_of_two(exponent) : value;
}

// Hadamard transform over all channels, orthonormal.
__device__ __forceinline__ float transformed(Shared& shared, float value, int part, int channel) {
#pragma unroll
  for (int stride = 1; stride < Config::kHeadDim; stride *= 2) {
    float other;
    if (stride < 32) {
      other = __shfl_xor_sync(0xFFFFFFFFu, value, stride);
    } else {
      __syncthreads();
      if (part == 0) shared.entry[channel] = value;
      __syncthreads();
      other = shared.entry[channel ^ stride];
    }
    value = (channel & stride) != 0 ? other - value : value + other;
  }
  return value / sqrtf(static_cast<float>(Config::kHeadDim));
}

// To E2M1 and back, in groups of 32: a warp each.
__device__ __forceinline__ float through_mxfp4(float value) {
  const bool is_finite = is_finite_number(value);
  float amax = is_finite ? fabsf(value) : 0.0f;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, distance));
  constexpr float kLeast = 7.052966104933725e-38f;  // 6 * 2^-126
  const int exponent = ceil_log2(fmaxf(amax, kLeast) / 6.0f);
  return is_finite ? nearest_e2m1(value * power_of_two(-exponent)) * power_of_two(exponent) : value;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    compress(const float* cg, const float* ape, const float* norm, const float2* rope, const float* state, bf16* pool,
             const int* table, const int* positions, const int* sequences, const int* step_start, const int* first_row,
             const int* m_on_device, int64_t ld_cg, int m, int max_pages, float norm_eps) {
  __shared__ Shared shared;
  launch_dependents();
  const int token = blockIdx.x;
  const bool is_there = token < actual_tokens(m_on_device, m);
  const int position = is_there ? of_step(positions, token) : 0;
  const bool closes = is_there && (position + 1) % Config::kRatio == 0;
  // In a prompt most tokens close nothing, and their blocks must not look up more than they have to.
  const int slot = closes ? of_step(sequences, token) : 0;
  const int row_of_start = closes ? of_step(first_row, slot) : 0, start = closes ? of_step(step_start, slot) : 0;
  wait_for_dependency();
  if (!closes) return;
  const int entry = position / Config::kRatio;
  const int part = threadIdx.x / Config::kHeadDim;
  const int channel = threadIdx.x % Config::kHeadDim;
  const Inputs inputs{cg + row_of_start * ld_cg, ape, state + int64_t{slot} * kRows * (2 * kWidth), ld_cg,
                      start};
  float value = pooled(shared, inputs, entry, part, channel);
  value = normalised(shared, value, norm[channel], norm_eps, part, channel);
  value = rotated(value, rope, entry * Config::kRatio, channel);
  if constexpr (Config::kRounding == Rounding::kFakeFp8) value = through_fp8(shared, value, part, channel);
  if constexpr (Config::kRounding == Rounding::kHadamardMxfp4) {
    value = through_mxfp4(transformed(shared, value, part, channel));
  }
  if (part > 0) return;
  const int64_t page = table[int64_t{slot} * max_pages + entry / Config::kPageEntries];
  const int64_t place = page * Config::kPageEntries + entry % Config::kPageEntries;
  pool[place * Config::kHeadDim + channel] = bf16_from_float(value);
}
