#line 4 "templates/route/kernel.cu"
// Generated from templates/route for sm90a. Do not edit.
//
// route: experts of a token by score = sqrt(softplus(logit)), weight = score / sum of the chosen scores * scale.
//
//   operand    shape                 in memory        written / read
//   logits     [m, experts]          f32, row-major   read once
//   bias       [experts]             f32, or null     added for the choice, read before the launch ahead has ended
//   tid2eid    [vocabulary, top_k]   int32, or null   the choice by token id, with kIsHashed
//   token_ids  [m]                   int32            read with kIsHashed
//   experts    [m, top_k]            int32            written
//   weights    [m, top_k]            f32              written
//
//   block = kWarps warps, one token each; lane l has experts l, l + 32, ..; no shared memory, no barriers
//
// By score: the largest of score + bias, one after the other, by two reductions over a warp each; ties to the lower
// index. A logit or biased score that is not finite, a token id or a table entry out of range make all weights of the
// token NaN, so that it shows; the experts stay within range, so that nothing is read beyond the end.
// Exactness: f32; the chosen scores are added in the order of their slots.
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
#line 23 "templates/route/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids ahead have ended and their writes are visible. Before it a kernel reads
// only what no kernel writes, and writes nothing; every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 24 "templates/route/kernel.cu"
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
#line 25 "templates/route/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(*m_on_device, m_capacity);
}
#line 26 "templates/route/kernel.cu"
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
#line 27 "templates/route/kernel.cu"
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
#line 28 "templates/route/kernel.cu"
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
#line 29 "templates/route/kernel.cu"

struct Config {
  static constexpr int kExperts = 256;
  static constexpr int kTopK = 6;
  static constexpr float kScale = 1.5f;
  static constexpr bool kIsHashed = false;
  static constexpr int kVocabulary = 0;
  static constexpr int kWarps = 1;
};

constexpr int kPerLane = ceil_divide(Config::kExperts, 32);
constexpr int kNoExpert = 0x7FFFFFFF;
static_assert(Config::kTopK <= 32 && Config::kTopK <= Config::kExperts, "a lane to a slot, an expert to a slot");

// Positive integers in the order of finite numbers; -0 equals 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  const uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return key == 0 ? 1 : key;
}

// The experts of a lane: their scores, and what they are chosen by, zero once they are taken.
struct Candidates {
  float score[kPerLane];
  uint32_t key[kPerLane];
  bool is_bad = false;

  __device__ __forceinline__ void load(const float* logits, const float (&bias)[kPerLane], int lane) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = i * 32 + lane;
      score[i] = 0.0f;
      key[i] = 0;
      if (expert >= Config::kExperts) continue;
      const float logit = logits[expert];
      score[i] = sqrtf(softplus(logit));
      const float biased = score[i] + bias[i];
      key[i] = ordered(biased);
      is_bad |= !is_finite(logit) || !is_finite(biased);
    }
  }

  // Takes the best expert of all lanes, the lowest of equals; its score comes along.
  __device__ __forceinline__ int take_best(float& best_score, int lane) {
    uint32_t best_key = 0;
    float own_score = 0.0f;
    int own_expert = lane;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (key[i] > best_key) {
        best_key = key[i];
        own_score = score[i];
        own_expert = i * 32 + lane;
      }
    }
    const bool is_best = best_key == __reduce_max_sync(~0u, best_key);
    const int expert = __reduce_min_sync(~0u, is_best ? own_expert : kNoExpert);
    best_score = __shfl_sync(~0u, own_score, expert % 32);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (expert == i * 32 + lane) key[i] = 0;
    }
    return expert;
  }
};

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32)
    route(const float* logits, const float* bias, const int* tid2eid, const int* token_ids, int* experts,
          float* weights, const int* m_on_device, int m) {
  launch_dependents();
  const int token = blockIdx.x * Config::kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  float own_bias[kPerLane] = {};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (bias != nullptr && i * 32 + lane < Config::kExperts) own_bias[i] = bias[i * 32 + lane];
  }
  wait_for_dependency();
  if (token >= actual_tokens(m_on_device, m)) return;
  const float* row = logits + int64_t{token} * Config::kExperts;
  Candidates candidates;
  candidates.load(row, own_bias, lane);
  bool is_bad = __any_sync(~0u, candidates.is_bad);
  int own_expert = 0;
  float own_score = 0.0f;
  if constexpr (Config::kIsHashed) {
    const int id = token_ids[token];
    const bool is_known = id >= 0 && id < Config::kVocabulary;
    int expert = -1;
    if (is_known && lane < Config::kTopK) expert = tid2eid[int64_t{id} * Config::kTopK + lane];
    const bool is_there = expert >= 0 && expert < Config::kExperts;
    is_bad |= __any_sync(~0u, lane < Config::kTopK && !is_there);
    own_expert = is_there ? expert : lane % Config::kExperts;
    own_score = sqrtf(softplus(row[own_expert]));
  } else {
#pragma unroll
    for (int slot = 0; slot < Config::kTopK; ++slot) {
      float score;
      const int expert = candidates.take_best(score, lane);
      if (lane == slot) {
        own_expert = expert;
        own_score = score;
      }
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < Config::kTopK; ++slot) sum += __shfl_sync(~0u, own_score, slot);
  if (lane >= Config::kTopK) return;
  experts[int64_t{token} * Config::kTopK + lane] = own_expert;
  weights[int64_t{token} * Config::kTopK + lane] = is_bad ? no_value() : own_score / sum * Config::kScale;
}
