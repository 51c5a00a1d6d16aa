#line 4 "templates/compress/kernel.cu"
// Generated from templates/compress for sm90a. Do not edit.
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
#line 27 "templates/compress/kernel.cu"
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
#line 28 "templates/compress/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 29 "templates/compress/kernel.cu"
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
#line 30 "templates/compress/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 31 "templates/compress/kernel.cu"
#line 1 "templates/lib/step_arrays.cuh"
// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. The host writes them
// while its stream is idle, and templates/advance ends a step: behind it stands no launch of the same graph, and the
// host waits before it launches another step in a row. So a kernel of a step may ask for them before it waits for the
// launch ahead, and behind its wait one way to memory is left where there were two or three. (Two steps in one graph
// would need a full edge between them; that advance lets nobody start early is a second lock, not the first.)
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
#line 32 "templates/compress/kernel.cu"
#line 1 "templates/lib/entry_rounding.cuh"
// Quantised and back at once: what a value becomes when it is kept in E4M3 or E2M1 under a power-of-two scale.

__device__ __forceinline__ bool is_finite_number(float x) {
  return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u;
}

// The least n with 2^n >= x, for normal x > 0.
__device__ __forceinline__ int ceil_log2(float x) {
  const uint32_t bits = __float_as_uint(x);
  return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7FFFFFu) != 0 ? 1 : 0);
}

// Nearest value of E4M3, ties to even, saturating at 448; `x` is finite.
__device__ __forceinline__ float nearest_e4m3(float x) {
  const float magnitude = fminf(fabsf(x), 448.0f);
  if (magnitude < 0.015625f) return copysignf(rintf(magnitude * 512.0f) * 0.001953125f, x);
  const uint32_t bits = __float_as_uint(magnitude);
  return copysignf(__uint_as_float((bits + 0x7FFFFu + (bits >> 20 & 1u)) & ~0xFFFFFu), x);
}

// Nearest value of E2M1, ties to the even code, saturating at 6; `x` is finite.
__device__ __forceinline__ float nearest_e2m1(float x) {
  const float magnitude = fabsf(x);
  const float nearest = magnitude <= 0.25f   ? 0.0f
                        : magnitude < 0.75f  ? 0.5f
                        : magnitude <= 1.25f ? 1.0f
                        : magnitude < 1.75f  ? 1.5f
                        : magnitude <= 2.5f  ? 2.0f
                        : magnitude < 3.5f   ? 3.0f
                        : magnitude <= 5.0f  ? 4.0f
                                             : 6.0f;
  return copysignf(nearest, x);
}
#line 33 "templates/compress/kernel.cu"

enum class Rounding { kBf16, kFakeFp8, kHadamardMxfp4 };

struct Config {
  static constexpr int kHeadDim = 512;
  static constexpr int kRopeDim = 64;          // last columns, rotated
  static constexpr int kRatio = 4;               // tokens of an entry
  static constexpr int kSeries = 2;             // 2: entries overlap
  static constexpr int kPageEntries = 64;
  static constexpr Rounding kRounding = Rounding::kFakeFp8;
  static constexpr int kParts = 1;               // threads of a channel
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
