#line 4 "templates/route/kernel.cu"
// Generated from templates/route for sm90a. Do not edit.
//
// route: experts of a token by score = sqrt(softplus(logit)), weight = score / sum of the chosen scores * scale.
//
//   operand    shape                 in memory        written / read
//   logits     [m, experts]          f32, row-major   read once
//   bias       [experts]             f32, or null     added for the choice, read before the launch ahead has ended
//   tid2eid    [vocabulary, top_k]   int32, or null   the choice by token id, with kIsHashed, as bias
//   token_ids  [m]                   int32            read with kIsHashed, as bias
//   experts    [m, top_k]            int32            written
//   weights    [m, top_k]            f32              written
//   mix        [m, 20]               f32              C balanced in place, with kBalances
//
//   block = kTokens tokens of kTokenWarps warps each, one of which is 1; grid = groups of tokens
//   with kBalances: as many blocks again, which finish the mixing matrices that templates/hc_pre has left
//   shared memory: scores of all experts, and the integers that they are chosen by
//   barrier: scores are there; of a token's warps the first goes on alone, lane l with kPerLane neighbouring experts
//
// By score: the largest of score + bias, one after the other, by a reduction and a vote each; ties to the lower index.
// A logit or biased score that is not finite, a token id or a table entry out of range make all weights of the token
// NaN, so that it shows; the experts stay within range, so that nothing is read beyond the end.
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
#line 27 "templates/route/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 28 "templates/route/kernel.cu"
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
#line 29 "templates/route/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 30 "templates/route/kernel.cu"
#line 1 "templates/lib/step_arrays.cuh"
// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. The host writes them
// while its stream is idle, and templates/advance ends a step: behind it stands no launch of the same graph, and the
// host waits before it launches another step in a row. So a kernel of a step may ask for them before it waits for the
// launch ahead, and behind its wait one way to memory is left where there were two or three. (Two steps in one graph
// would need a full edge between them; that advance lets nobody start early is a second lock, not the first.)
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
#line 31 "templates/route/kernel.cu"
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
#line 32 "templates/route/kernel.cu"
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
#line 33 "templates/route/kernel.cu"
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
#line 34 "templates/route/kernel.cu"
#line 1 "templates/arch/sm80/reciprocal.cuh"
// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#line 35 "templates/route/kernel.cu"
#line 1 "templates/lib/reciprocal.cuh"
// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
#line 36 "templates/route/kernel.cu"
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
#line 37 "templates/route/kernel.cu"

struct Config {
  static constexpr int kExperts = 256;
  static constexpr int kTopK = 6;
  static constexpr float kScale = 1.5f;
  static constexpr bool kIsHashed = false;
  static constexpr int kVocabulary = 0;
  static constexpr int kTokens = 1;           // of a block
  static constexpr int kTokenWarps = 8;  // of a token
  static constexpr bool kBalances = true;
  static constexpr int kRounds = 20;           // of the balance
  static constexpr float kHcEpsilon = 1e-6f;
};

constexpr int kTokenThreads = Config::kTokenWarps * 32;
constexpr int kScored = ceil_divide(Config::kExperts, kTokenThreads);  // experts that a thread scores
constexpr int kPerLane = ceil_divide(Config::kExperts, 32);            // experts that a lane chooses from
static_assert(Config::kTopK <= 32 && Config::kTopK <= Config::kExperts, "a lane to a slot, an expert to a slot");
static_assert(Config::kTokens == 1 || Config::kTokenWarps == 1, "a barrier joins one token's threads");
static_assert(Config::kTokens == 1 || !Config::kBalances, "a matrix to a block");

// Of one token.
struct Scores {
  float score[Config::kExperts];
  uint32_t key[Config::kExperts];  // what experts are chosen by
};

// Positive integers in the order of finite numbers; -0 equals 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  const uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return key == 0 ? 1 : key;
}

// Scores the experts `thread`, `thread` + kTokenThreads, .. of a token. Whether a number was not finite.
__device__ __forceinline__ bool score_experts(Scores& scores, const float* logits, const float (&bias)[kScored],
                                              int thread) {
  bool is_bad = false;
#pragma unroll
  for (int i = 0; i < kScored; ++i) {
    const int expert = i * kTokenThreads + thread;
    if (expert >= Config::kExperts) continue;
    const float logit = logits[expert];
    const float score = sqrtf(softplus(logit));
    const float biased = score + bias[i];
    scores.score[expert] = score;
    scores.key[expert] = ordered(biased);
    is_bad |= !is_finite(logit) || !is_finite(biased);
  }
  return is_bad;
}

// Keys of a lane's experts, zero once they are taken.
struct Candidates {
  uint32_t key[kPerLane];

  __device__ __forceinline__ void load(const Scores& scores, int lane) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = lane * kPerLane + i;
      key[i] = expert < Config::kExperts ? scores.key[expert] : 0;
    }
  }

  // Takes the best expert of all lanes, the lowest of equals.
  __device__ __forceinline__ int take_best(int lane) {
    uint32_t best = key[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) best = key[i] > best ? key[i] : best;
    int place = 0;  // the lowest of the lane's best, found while the reduction is under way
#pragma unroll
    for (int i = kPerLane - 1; i > 0; --i) place = key[i] == best ? i : place;
    if (key[0] == best) place = 0;
    const unsigned winners = __ballot_sync(~0u, best == __reduce_max_sync(~0u, best));
    const int winner = __ffs(winners) - 1;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane == winner && place == i) key[i] = 0;
    }
    return winner * kPerLane + __shfl_sync(~0u, place, winner);
  }
};

// The expert of the slot `lane` by token id. `is_bad` becomes true where id or expert is out of range.
__device__ __forceinline__ int listed_expert(const int* tid2eid, int id, bool& is_bad, int lane) {
  const bool is_known = id >= 0 && id < Config::kVocabulary;
  int expert = -1;
  if (is_known && lane < Config::kTopK) expert = tid2eid[int64_t{id} * Config::kTopK + lane];
  const bool is_there = expert >= 0 && expert < Config::kExperts;
  is_bad |= lane < Config::kTopK && !is_there;
  return is_there ? expert : lane % Config::kExperts;
}

extern "C" __global__ void __launch_bounds__(Config::kTokens * kTokenThreads)
    route(const float* logits, const float* bias, const int* tid2eid, const int* token_ids, int* experts,
          float* weights, const int* m_on_device, int m, float* mix) {
  __shared__ Scores shared[Config::kTokens];
  launch_dependents();
  const int lane = threadIdx.x % 32, thread = threadIdx.x % kTokenThreads, of_block = threadIdx.x / kTokenThreads;
  const int token = blockIdx.x * Config::kTokens + of_block;
  float own_bias[kScored] = {};
#pragma unroll
  for (int i = 0; i < kScored; ++i) {
    const int expert = i * kTokenThreads + thread;
    if (bias != nullptr && expert < Config::kExperts) own_bias[i] = bias[expert];
  }
  const int n_tokens = actual_tokens(m_on_device, m);
  bool is_bad = false;
  int own_expert = 0;
  if constexpr (Config::kIsHashed) {
    if (token < n_tokens) own_expert = listed_expert(tid2eid, of_step(token_ids, token), is_bad, lane);
  }
  wait_for_dependency();
  if constexpr (Config::kBalances) {
    if (token >= m) {
      if (token - m < n_tokens && threadIdx.x < 32) balance_mix<Config>(mix + int64_t{token - m} * 20);
      return;
    }
  }
  if (token >= n_tokens) return;
  Scores& scores = shared[of_block];
  is_bad |= score_experts(scores, logits + int64_t{token} * Config::kExperts, own_bias, thread);
  if constexpr (Config::kTokenWarps > 1) {
    is_bad = __syncthreads_or(is_bad) != 0;
    if (thread >= 32) return;
  } else {
    is_bad = __any_sync(~0u, is_bad);
    __syncwarp();
  }
  if constexpr (!Config::kIsHashed) {
    Candidates candidates;
    candidates.load(scores, lane);
#pragma unroll
    for (int slot = 0; slot < Config::kTopK; ++slot) {
      const int expert = candidates.take_best(lane);
      if (lane == slot) own_expert = expert;
    }
  }
  const float own_score = scores.score[own_expert];
  float sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < Config::kTopK; ++slot) sum += __shfl_sync(~0u, own_score, slot);
  if (lane >= Config::kTopK) return;
  experts[int64_t{token} * Config::kTopK + lane] = own_expert;
  weights[int64_t{token} * Config::kTopK + lane] = is_bad ? no_value() : own_score / sum * Config::kScale;
}
