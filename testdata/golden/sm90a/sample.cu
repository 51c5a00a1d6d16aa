#line 4 "templates/sample/kernel.cu"
// Generated from templates/sample for sm90a. Do not edit.
//
// sample: a token for each row of logits, bit for bit what src/engine/sampling.rs draws.
//   weight = 2^((logit - largest) * (log2(e) / temperature)), mass = weight * 2^40 without its fraction
//
//   operand    shape                 in memory                            written / read
//   logits     [m, vocabulary]       f32, row-major                        read; once for temperature 0
//   settings   one                   temperature f32, top_p f32, seed u64  read
//   rows       [m]                   int32, or null for the row itself     row of the step that a row is of
//   positions  [rows of the step]    int32                                 read at that row
//   sequences  [rows of the step]    int32                                 read at that row
//   tokens     [m]                   int32                                 written; -1 where a logit is not finite
//
//   block = kThreads threads, one row
//   largest    the largest logit, ties to the lower id; the answer at temperature 0
//   nucleus    the largest threshold of weights whose mass, with all that tie, reaches top_p of the whole: ten bits of
//              the weight at a time, by a histogram of masses
//   draw       a number below the nucleus' mass from seed, sequence and position; the token in whose range it falls,
//              ids ascending: the range is divided among the warps until one token is left
//
// Masses are integers: their sums are exact and the same in any order, on any number of threads, on any machine.
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
#line 26 "templates/sample/kernel.cu"
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
#line 27 "templates/sample/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 28 "templates/sample/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 29 "templates/sample/kernel.cu"
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
#line 30 "templates/sample/kernel.cu"
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
#line 31 "templates/sample/kernel.cu"

struct Config {
  static constexpr int kVocabulary = 129280;
  static constexpr int kThreads = 1024;
};

constexpr int kWarps = Config::kThreads / 32;
constexpr int kDigitBits = 10;
constexpr int kBins = 1 << kDigitBits;
static_assert(kWarps > 1, "a range is divided among warps until one token is left");
static_assert(Config::kVocabulary % 4 == 0, "logits are read four at a time");

struct Settings {
  float temperature;
  float top_p;
  uint64_t seed;
};

struct Shared {
  unsigned long long bins[kBins];
  uint64_t warps[kWarps];
  uint64_t chosen[2];  // of a search: what was found, and what lies before it
};

// Weights of one row.
struct Row {
  const float* logits;
  float largest;
  float scale;

  // The f32 bits of a weight, which are ordered as the weights are.
  __device__ __forceinline__ uint32_t weight_bits(int id) const {
    const float below = logits[id] - largest;
    return __float_as_uint(below == 0.0f ? 1.0f : exp2_defined(below * scale));
  }
};

__device__ __forceinline__ uint64_t mass_of(uint32_t weight_bits) {
  return __float2ull_rz(__uint_as_float(weight_bits) * 1099511627776.0f);
}

// Sum over the lanes.
__device__ __forceinline__ uint64_t lane_total(uint64_t value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// Sum over this lane and those below it.
__device__ __forceinline__ uint64_t lane_prefix(uint64_t value, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

// The largest logit's id, or -1 where a logit is not finite. One SM reads the whole row, so loads of four logits are
// eight deep and each logit costs few instructions: a quad is compared as a whole, and searched once at the end.
__device__ __forceinline__ int largest_id(const float* logits, Shared& shared) {
  const float4* quads = reinterpret_cast<const float4*>(logits);
  float most = __int_as_float(0xFF800000);
  int most_quad = 0;
  float zero = 0.0f;  // times zero, what is not finite becomes NaN
#pragma unroll 8
  for (int quad = threadIdx.x; quad < Config::kVocabulary / 4; quad += Config::kThreads) {
    const float4 four = quads[quad];
    zero = __fmaf_rn(four.w, 0.0f, __fmaf_rn(four.z, 0.0f, __fmaf_rn(four.y, 0.0f, __fmaf_rn(four.x, 0.0f, zero))));
    const float largest = fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w));
    // Of equals the lower id stays.
    if (largest > most) {
      most = largest;
      most_quad = quad;
    }
  }
  const float4 four = quads[most_quad];
  const int id = most_quad * 4 + (four.x == most ? 0 : four.y == most ? 1 : four.z == most ? 2 : 3);
  // As integers, keys are ordered by logit, then by lower id. Adding zero turns -0 into 0, which it ties with.
  const uint32_t bits = __float_as_uint(most + 0.0f);
  const uint32_t ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  uint64_t best = uint64_t{ordered} << 32 | ~static_cast<uint32_t>(id);
  bool is_bad = zero != zero;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, best, step);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = best;
  is_bad = __syncthreads_or(is_bad) != 0;
  for (int warp = 0; warp < kWarps; ++warp) best = shared.warps[warp] > best ? shared.warps[warp] : best;
  __syncthreads();
  return is_bad ? -1 : static_cast<int>(~static_cast<uint32_t>(best));
}

// Masses of the bins of one digit, for weights whose higher bits are `prefix`.
__device__ __forceinline__ void fill_bins(const Row& row, uint32_t prefix, int shift, Shared& shared) {
  for (int bin = threadIdx.x; bin < kBins; bin += Config::kThreads) shared.bins[bin] = 0;
  __syncthreads();
  for (int id = threadIdx.x; id < Config::kVocabulary; id += Config::kThreads) {
    const uint32_t bits = row.weight_bits(id);
    const uint64_t mass = mass_of(bits);
    if (mass == 0 || bits >> (shift + kDigitBits) != prefix) continue;
    atomicAdd(shared.bins + (bits >> shift & (kBins - 1)), static_cast<unsigned long long>(mass));
  }
  __syncthreads();
}

// By one warp: the highest bin at which the mass from the top reaches `target`, with the mass above it; the mass of all
// if it never does. Each lane has a run of neighbouring bins.
__device__ __forceinline__ void find_bin(uint64_t target, Shared& shared, int lane) {
  constexpr int kRun = kBins / 32;
  const int top = kBins - 1 - lane * kRun;
  uint64_t own = 0;
  for (int i = 0; i < kRun; ++i) own += shared.bins[top - i];
  uint64_t above = lane_prefix(own, lane) - own;
  if (lane == 31) {
    shared.chosen[0] = 0;
    shared.chosen[1] = above + own;
  }
  __syncwarp();
  if (above >= target || above + own < target) return;
  for (int i = 0; i < kRun; ++i) {
    const uint64_t mass = shared.bins[top - i];
    if (above + mass >= target) {
      shared.chosen[0] = top - i;
      shared.chosen[1] = above;
      return;
    }
    above += mass;
  }
}

struct Nucleus {
  uint32_t threshold;  // least weight, as bits
  uint64_t mass;
};

// The bits of the least weight that is drawn from, and the mass of all from it up.
__device__ __forceinline__ Nucleus nucleus_of(const Row& row, float top_p, Shared& shared) {
  const int lane = threadIdx.x;
  fill_bins(row, 0, 2 * kDigitBits, shared);
  if (threadIdx.x < 32) find_bin(~uint64_t{0}, shared, lane);
  __syncthreads();
  const uint64_t total = shared.chosen[1];
  if (top_p >= 1.0f) return {0, total};
  // The product is an IEEE one in f64, so that every machine has the same target.
  const double wanted = static_cast<double>(top_p) * static_cast<double>(total);
  uint64_t target = wanted > 1.0 ? __double2ull_rz(wanted) : 1;
  target = target > total ? total : target;
  uint32_t prefix = 0;
  uint64_t above = 0;
#pragma unroll 1
  for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
    if (shift < 2 * kDigitBits) fill_bins(row, prefix, shift, shared);
    __syncthreads();
    if (threadIdx.x < 32) find_bin(target - above, shared, lane);
    __syncthreads();
    prefix = prefix << kDigitBits | static_cast<uint32_t>(shared.chosen[0]);
    above += shared.chosen[1];
  }
  return {prefix, above + shared.bins[prefix & (kBins - 1)]};
}

// The token in whose range `place` falls when the masses of the nucleus stand in a row by id.
__device__ __forceinline__ int token_at(const Row& row, uint32_t threshold, uint64_t place, Shared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int begin = 0, count = Config::kVocabulary;
  while (count > 1) {
    const int share = ceil_divide(count, kWarps);
    const int own_begin = begin + warp * share, own_end = smaller(own_begin + share, begin + count);
    uint64_t sum = 0;
    for (int id = own_begin + lane; id < own_end; id += 32) {
      const uint32_t bits = row.weight_bits(id);
      sum += bits >= threshold ? mass_of(bits) : 0;
    }
    sum = lane_total(sum);
    __syncthreads();
    if (lane == 0) shared.warps[warp] = sum;
    __syncthreads();
    int chosen = 0;
    while (chosen < kWarps - 1 && place >= shared.warps[chosen]) place -= shared.warps[chosen++];
    const int end = begin + count;
    begin += chosen * share;
    count = smaller(share, end - begin);
  }
  return begin;
}

// The finaliser of splitmix64.
__device__ __forceinline__ uint64_t scramble(uint64_t z) {
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}

extern "C" __global__ void __launch_bounds__(Config::kThreads, 1)
    sample(const float* logits, const Settings* settings, const int* rows, const int* positions, const int* sequences,
           int* tokens, const int* m_on_device, int m) {
  __shared__ Shared shared;
  launch_dependents();
  wait_for_dependency();
  const int idx = blockIdx.x;
  if (idx >= actual_tokens(m_on_device, m)) return;
  const float* own_logits = logits + int64_t{idx} * Config::kVocabulary;
  int token = largest_id(own_logits, shared);
  const float temperature = settings->temperature;
  if (token >= 0 && temperature > 0.0f) {
    constexpr float kLog2E = 1.44269502162933349609375f;  // 0x3FB8AA3B
    const Row row{own_logits, own_logits[token], kLog2E / temperature};
    const Nucleus nucleus = nucleus_of(row, settings->top_p, shared);
    const int step_row = rows == nullptr ? idx : rows[idx];
    const uint64_t counter = uint64_t{static_cast<uint32_t>(sequences[step_row])} << 32 |
                             static_cast<uint32_t>(positions[step_row]);
    const uint64_t random = scramble(scramble(settings->seed + 0x9E3779B97F4A7C15ull) + counter);
    token = token_at(row, nucleus.threshold, __umul64hi(random, nucleus.mass), shared);
  }
  if (threadIdx.x == 0) tokens[idx] = token;
}
