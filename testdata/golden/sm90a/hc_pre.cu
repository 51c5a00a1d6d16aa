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
#line 35 "templates/hc_pre/kernel.cu"
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
#line 36 "templates/hc_pre/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 37 "templates/hc_pre/kernel.cu"
#line 1 "templates/arch/sm80/named_barrier.cuh"
// Barriers of some of a block's warps.

// bar.sync: joins the `threads` threads that call it with this `barrier` (1 to 15; __syncthreads is barrier 0).
__device__ __forceinline__ void join_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// bar.arrive: counts towards what bar.sync of other threads waits for, and goes on.
__device__ __forceinline__ void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
#line 38 "templates/hc_pre/kernel.cu"
#line 1 "templates/arch/sm80/reciprocal.cuh"
// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#line 39 "templates/hc_pre/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 40 "templates/hc_pre/kernel.cu"
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
#line 41 "templates/hc_pre/kernel.cu"
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
#line 42 "templates/hc_pre/kernel.cu"
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
#line 43 "templates/hc_pre/kernel.cu"
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
#line 44 "templates/hc_pre/kernel.cu"
#line 1 "templates/lib/reciprocal.cuh"
// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
#line 45 "templates/hc_pre/kernel.cu"
#line 1 "templates/lib/sinkhorn.cuh"
// Mixing matrices: rows and columns brought to a sum of 1 in turn.
//
// Sinkhorn keeps C as K[j][k] / (U[j] * V[k]) and changes U and V in turn: U'[j] = sum_k K[j][k] / V[k] + eps * U[j].
// Its 2 * kRounds steps depend on each other and are what a short step waits for: in each four sums and four
// reciprocals run side by side without a branch, in every lane, since shuffles would take as long as reciprocals.

__device__ __forceinline__ void unpack(float (&to)[4], float4 from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}

// epsilon * before + sum over i of k[i] * other[i].
template <class Config>
__device__ __forceinline__ float half_step(float before, float k0, float k1, float k2, float k3,
                                           const float (&other)[4]) {
  const float even = __fmaf_rn(k2, other[2], __fmaf_rn(k0, other[0], Config::kHcEpsilon * before));
  const float odd = __fmaf_rn(k3, other[3], k1 * other[1]);
  return even + odd;
}

// K after Sinkhorn, in place.
template <class Config>
__device__ __forceinline__ void balance(float (&k)[4][4]) {
  float row_sum[4] = {1.0f, 1.0f, 1.0f, 1.0f}, column_sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  float row_factor[4] = {1.0f, 1.0f, 1.0f, 1.0f}, column_factor[4];
  const auto divide_columns = [&] {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      column_sum[i] = half_step<Config>(column_sum[i], k[0][i], k[1][i], k[2][i], k[3][i], row_factor);
      column_factor[i] = reciprocal_in_range(column_sum[i]);
    }
  };
  divide_columns();
#pragma unroll 1
  for (int round = 1; round < Config::kRounds; ++round) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      row_sum[j] = half_step<Config>(row_sum[j], k[j][0], k[j][1], k[j][2], k[j][3], column_factor);
      row_factor[j] = reciprocal_in_range(row_sum[j]);
    }
    divide_columns();
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) k[j][i] = row_factor[j] * k[j][i] * column_factor[i];
  }
}

// What hc_pre has left to others: the matrix of one token behind its post[4], in place. Called by whole warps, all of
// which do the same; thread 0 writes.
template <class Config>
__device__ __forceinline__ void balance_mix(float* mix) {
  float4* rows = reinterpret_cast<float4*>(mix) + 1;
  float k[4][4];
#pragma unroll
  for (int j = 0; j < 4; ++j) unpack(k[j], rows[j]);
  balance<Config>(k);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int j = 0; j < 4; ++j) rows[j] = make_float4(k[j][0], k[j][1], k[j][2], k[j][3]);
}
#line 46 "templates/hc_pre/kernel.cu"

using Element = bf16;

struct Config {
  static constexpr int kHidden = 4096;
  static constexpr int kRows = 24;
  static constexpr int kSplits = 128;
  static constexpr int kTokens = 1;  // of a block
  static constexpr int kRounds = 20;
  static constexpr bool kBalances = true;
  static constexpr float kNormEpsilon = 1e-6f;
  static constexpr float kHcEpsilon = 1e-6f;
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
