#line 4 "templates/hc_pre/kernel.cu"
// Generated from templates/hc_pre for sm90a. Do not edit.
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
#line 26 "templates/hc_pre/kernel.cu"
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
#line 27 "templates/hc_pre/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids ahead have ended and their writes are visible. Before it a kernel reads
// only what no kernel writes, and writes nothing; every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 28 "templates/hc_pre/kernel.cu"
#line 1 "templates/arch/sm80/named_barrier.cuh"
// Barriers of some of a block's warps.

// bar.sync: joins the `threads` threads that call it with this `barrier` (1 to 15; __syncthreads is barrier 0).
__device__ __forceinline__ void join_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
#line 29 "templates/hc_pre/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(*m_on_device, m_capacity);
}
#line 30 "templates/hc_pre/kernel.cu"
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

// x * sigmoid(x).
__device__ __forceinline__ float silu(float x) {
  constexpr float kLog2E = 1.44269502162933349609375f;  // 0x3FB8AA3B
  return x / (1.0f + exp2_defined(-x * kLog2E));
}

// silu(min(gate, limit)) * clamp(up, -limit, limit). The comparisons keep a NaN in either operand, as fminf would not.
__device__ __forceinline__ float swiglu(float gate, float up, float limit) {
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return silu(gate) * up;
}
#line 31 "templates/hc_pre/kernel.cu"
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
#line 32 "templates/hc_pre/kernel.cu"
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
#line 33 "templates/hc_pre/kernel.cu"
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
#line 34 "templates/hc_pre/kernel.cu"

using Element = bf16;

struct Config {
  static constexpr int kHidden = 4096;
  static constexpr int kRows = 24;
  static constexpr int kSplits = 128;
  static constexpr int kRounds = 20;
  static constexpr float kNormEpsilon = 1e-6f;
  static constexpr float kHcEpsilon = 1e-6f;
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
