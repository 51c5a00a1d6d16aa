#line 4 "templates/rotate/kernel.cu"
// Generated from templates/rotate for sm90a. Do not edit.
//
// rotate: the last rope_dim elements of every head turn by the token's position, in place.
//
//   operand    shape                       in memory                     written / read
//   q          [m, heads, dim]             BF16, row-major               read and written once
//   rope       [positions, rope_dim / 2]   float2 (cos, sin)             read before the launch ahead has ended
//   positions  [m]                         int32                         as rope
//
//   block = kWarps warps, one head each; grid = (head blocks, tokens); no shared memory, no barriers
//   lane: kVector neighbouring elements of each chunk of 32 * kVector
//
//   kHasHadamard   at the end the head is multiplied by the Hadamard matrix / sqrt(dim) and rounded to MXFP4: E2M1 in
//                  groups of 32 with the scale 2^ceil(log2(max(amax, 6 * 2^-126) / 6)), which BF16 holds exactly;
//                  what is not finite stays as it is
//
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
#line 22 "templates/rotate/kernel.cu"
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
#line 23 "templates/rotate/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 24 "templates/rotate/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 25 "templates/rotate/kernel.cu"
#line 1 "templates/lib/step_arrays.cuh"
// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. The host writes them
// while its stream is idle, and templates/advance ends a step: behind it stands no launch of the same graph, and the
// host waits before it launches another step in a row. So a kernel of a step may ask for them before it waits for the
// launch ahead, and behind its wait one way to memory is left where there were two or three. (Two steps in one graph
// would need a full edge between them; that advance lets nobody start early is a second lock, not the first.)
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
#line 26 "templates/rotate/kernel.cu"
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
#line 27 "templates/rotate/kernel.cu"
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
#line 28 "templates/rotate/kernel.cu"
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
#line 29 "templates/rotate/kernel.cu"
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
#line 30 "templates/rotate/kernel.cu"
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
#line 31 "templates/rotate/kernel.cu"
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
#line 32 "templates/rotate/kernel.cu"

struct Config {
  static constexpr int kHeads = 64;
  static constexpr int kDim = 128;
  static constexpr int kRopeDim = 64;
  static constexpr bool kHasHadamard = true;
  static constexpr int kWarps = 8;
};

constexpr int kVector = Config::kDim >= 256 ? 8 : larger(Config::kDim / 32, 2);
constexpr int kChunks = ceil_divide(Config::kDim, 32 * kVector);
static_assert((Config::kDim & (Config::kDim - 1)) == 0 && Config::kDim >= 32, "a head is a power of two");
static_assert(!Config::kHasHadamard || kChunks == 1, "the transform exchanges elements of one chunk");
static_assert(Config::kRopeDim % kVector == 0, "a lane's elements are rotated, or not, together");

using Vector = float[kVector];

// A lane's elements of a chunk, as words of two.
__device__ __forceinline__ void load_vector(Vector& to, const bf16* from) {
  struct alignas(2 * kVector) Words {
    uint32_t pairs[kVector / 2];
  };
  const Words words = *reinterpret_cast<const Words*>(from);
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    to[i] = low_float(words.pairs[i / 2]);
    to[i + 1] = high_float(words.pairs[i / 2]);
  }
}

__device__ __forceinline__ void store_vector(bf16* to, const Vector& from) {
  struct alignas(2 * kVector) Words {
    uint32_t pairs[kVector / 2];
  } words;
#pragma unroll
  for (int i = 0; i < kVector; i += 2) words.pairs[i / 2] = pair_from_floats(from[i], from[i + 1]);
  *reinterpret_cast<Words*>(to) = words;
}

// Orthonormal Hadamard transform of a head: exchanges within lanes, then between them.
__device__ __forceinline__ void transform(Vector& values, int lane) {
#pragma unroll
  for (int step = 1; step < kVector; step *= 2) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if ((i & step) != 0) continue;
      const float a = values[i], b = values[i + step];
      values[i] = a + b;
      values[i + step] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < Config::kDim / kVector; step *= 2) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float other = __shfl_xor_sync(~0u, values[i], step);
      values[i] = (lane & step) != 0 ? other - values[i] : values[i] + other;
    }
  }
  const float factor = reciprocal_root(static_cast<float>(Config::kDim));
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] *= factor;
}

// Rounds to E2M1 with the scale of the group of 32 elements.
__device__ __forceinline__ void round_to_mxfp4(Vector& values) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kVector; ++i) amax = fmaxf(amax, finite_magnitude(values[i]));
  const float least = 6.0f * power_of_two(-126);
  const float scale = power_of_two(ceil_log2(fmaxf(lane_maximum(amax, 32 / kVector), least) / 6.0f));
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (is_finite(values[i])) values[i] = nearest_e2m1(values[i] / scale) * scale;
  }
}

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32)
    rotate(bf16* q, const float2* rope, const int* positions, const int* m_on_device, int m) {
  launch_dependents();
  const int token = blockIdx.y, lane = threadIdx.x % 32;
  const int head = blockIdx.x * Config::kWarps + threadIdx.x / 32;
  const bool is_there = token < actual_tokens(m_on_device, m) && head < Config::kHeads;
  const float2* of_position = rope + int64_t{is_there ? of_step(positions, token) : 0} * (Config::kRopeDim / 2);
  // Asked for before the wait: lib/step_arrays.cuh.
  float2 turns[kChunks][kVector / 2] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int element = (chunk * 32 + lane) * kVector, rotated = element - (Config::kDim - Config::kRopeDim);
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      if (rotated >= 0 && element < Config::kDim) turns[chunk][i] = of_position[rotated / 2 + i];
    }
  }
  wait_for_dependency();
  if (!is_there) return;
  bf16* row = q + (int64_t{token} * Config::kHeads + head) * Config::kDim;
  Vector values[kChunks] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int element = (chunk * 32 + lane) * kVector;
    if (element < Config::kDim) load_vector(values[chunk], row + element);
  }
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int element = (chunk * 32 + lane) * kVector, rotated = element - (Config::kDim - Config::kRopeDim);
    if (rotated >= 0 && element < Config::kDim) rotate_pairs(values[chunk], turns[chunk], 0);
    if constexpr (Config::kHasHadamard) {
      transform(values[chunk], lane);
      round_to_mxfp4(values[chunk]);
    }
    if (element < Config::kDim) store_vector(row + element, values[chunk]);
  }
}
