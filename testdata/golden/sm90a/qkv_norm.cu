#line 4 "templates/qkv_norm/kernel.cu"
// Generated from templates/qkv_norm for sm90a. Do not edit.
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
#line 24 "templates/qkv_norm/kernel.cu"
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
#line 25 "templates/qkv_norm/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 26 "templates/qkv_norm/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 27 "templates/qkv_norm/kernel.cu"
#line 1 "templates/lib/step_arrays.cuh"
// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. The host writes them
// while its stream is idle, and templates/advance ends a step: behind it stands no launch of the same graph, and the
// host waits before it launches another step in a row. So a kernel of a step may ask for them before it waits for the
// launch ahead, and behind its wait one way to memory is left where there were two or three. (Two steps in one graph
// would need a full edge between them; that advance lets nobody start early is a second lock, not the first.)
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
#line 28 "templates/qkv_norm/kernel.cu"
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
#line 29 "templates/qkv_norm/kernel.cu"
#line 1 "templates/lib/elementary.cuh"
// More elementary functions from FMA and IEEE operations, beside those of lib/math.cuh: the same bits on every chip.
// NaN in is NaN out.

// e^x within 2e-7: what is lost in rounding x * log2(e) is put back, since it would cost |x| * 6e-8. Beyond 88 it is
// e^88, so that the correction never meets an infinity.
__device__ __forceinline__ float exp_defined(float x) {
  constexpr float kLog2E = 1.44269502162933349609375f;  // 0x3FB8AA3B
  constexpr float kLog2ERest = 1.92596299e-8f;          // log2(e) - kLog2E
  constexpr float kLn2 = 0.693147182464599609375f;
  x = x < -104.0f ? -104.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float product = x * kLog2E;
  const float rest = __fmaf_rn(x, kLog2ERest, __fmaf_rn(x, kLog2E, -product));
  const float power = exp2_defined(product);
  return __fmaf_rn(power, rest * kLn2, power);
}

// log(1 + x) for 0 <= x <= 1: 2 atanh(z), z = x / (2 + x) <= 1/3, by its series to z^17.
__device__ __forceinline__ float log1p_of_fraction(float x) {
  const float z = x / (2.0f + x);
  const float square = z * z;
  float p = 1.0f / 17.0f;
  p = __fmaf_rn(p, square, 1.0f / 15.0f);
  p = __fmaf_rn(p, square, 1.0f / 13.0f);
  p = __fmaf_rn(p, square, 1.0f / 11.0f);
  p = __fmaf_rn(p, square, 1.0f / 9.0f);
  p = __fmaf_rn(p, square, 1.0f / 7.0f);
  p = __fmaf_rn(p, square, 1.0f / 5.0f);
  p = __fmaf_rn(p, square, 1.0f / 3.0f);
  p = __fmaf_rn(p * square, 2.0f * z, 2.0f * z);
  return p;
}

// log(1 + e^x), without overflow and without losing a small result.
__device__ __forceinline__ float softplus(float x) {
  return (x > 0.0f ? x : 0.0f) + log1p_of_fraction(exp_defined(-fabsf(x)));
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_defined(-x)); }

// 1 / sqrt(x), two IEEE operations.
__device__ __forceinline__ float reciprocal_root(float x) { return 1.0f / sqrtf(x); }
#line 30 "templates/qkv_norm/kernel.cu"
#line 1 "templates/lib/elements.cuh"
// Neighbouring elements of a row as f32, and back with one rounding each: BF16 or f32 behind one name.

__device__ __forceinline__ float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// Magnitude for an amax, in which what is not finite takes no part.
__device__ __forceinline__ float finite_magnitude(float x) { return is_finite(x) ? fabsf(x) : 0.0f; }

// A quiet NaN: what stands where there is no value to give.
__device__ __forceinline__ float no_value() { return __int_as_float(0x7FC00000); }

// Eight elements, 16-byte aligned.
__device__ __forceinline__ void load_eight(float (&to)[8], const bf16* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  to[0] = low_float(words.x);
  to[1] = high_float(words.x);
  to[2] = low_float(words.y);
  to[3] = high_float(words.y);
  to[4] = low_float(words.z);
  to[5] = high_float(words.z);
  to[6] = low_float(words.w);
  to[7] = high_float(words.w);
}

__device__ __forceinline__ void load_eight(float (&to)[8], const float* from) {
  const float4 first = reinterpret_cast<const float4*>(from)[0];
  const float4 second = reinterpret_cast<const float4*>(from)[1];
  to[0] = first.x;
  to[1] = first.y;
  to[2] = first.z;
  to[3] = first.w;
  to[4] = second.x;
  to[5] = second.y;
  to[6] = second.z;
  to[7] = second.w;
}

__device__ __forceinline__ void store_eight(bf16* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(pair_from_floats(from[0], from[1]), pair_from_floats(from[2], from[3]),
                                             pair_from_floats(from[4], from[5]), pair_from_floats(from[6], from[7]));
}

__device__ __forceinline__ void store_eight(float* to, const float (&from)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

// One or two elements, aligned to their size together.
__device__ __forceinline__ void load_few(float (&to)[1], const bf16* from) { to[0] = float_of(*from); }
__device__ __forceinline__ void load_few(float (&to)[1], const float* from) { to[0] = *from; }

__device__ __forceinline__ void load_few(float (&to)[2], const bf16* from) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
  to[0] = low_float(pair);
  to[1] = high_float(pair);
}

__device__ __forceinline__ void load_few(float (&to)[2], const float* from) {
  const float2 pair = *reinterpret_cast<const float2*>(from);
  to[0] = pair.x;
  to[1] = pair.y;
}

// Stores elements and leaves in `values` what was stored.
__device__ __forceinline__ void store_few(bf16* to, float (&values)[1]) {
  *to = bf16_from_float(values[0]);
  values[0] = float_of(bf16_from_float(values[0]));
}

__device__ __forceinline__ void store_few(float* to, float (&values)[1]) { *to = values[0]; }

__device__ __forceinline__ void store_few(bf16* to, float (&values)[2]) {
  const uint32_t pair = pair_from_floats(values[0], values[1]);
  *reinterpret_cast<uint32_t*>(to) = pair;
  values[0] = low_float(pair);
  values[1] = high_float(pair);
}

__device__ __forceinline__ void store_few(float* to, float (&values)[2]) {
  *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
}
#line 31 "templates/qkv_norm/kernel.cu"
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
#line 32 "templates/qkv_norm/kernel.cu"
#line 1 "templates/lib/rotary.cuh"
// Rotation of neighbouring elements by an angle of their position: (a, b) -> (a cos - b sin, a sin + b cos).

// Rotates `count` elements, pairs of a head from pair `first_pair` on; `table` is the (cos, sin) row of the position.
template <int kCount>
__device__ __forceinline__ void rotate_pairs(float (&values)[kCount], const float2* table, int first_pair) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float2 turn = table[first_pair + i];
    const float a = values[2 * i], b = values[2 * i + 1];
    values[2 * i] = a * turn.x - b * turn.y;
    values[2 * i + 1] = a * turn.y + b * turn.x;
  }
}
#line 33 "templates/qkv_norm/kernel.cu"
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
#line 34 "templates/qkv_norm/kernel.cu"

struct Config {
  static constexpr int kQRank = 1024;
  static constexpr int kHeadDim = 512;
  static constexpr int kRopeDim = 64;
  static constexpr float kNormEpsilon = 1e-6f;
  static constexpr bool kHasFakeFp8 = true;
  static constexpr int kThreads = 128;
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
