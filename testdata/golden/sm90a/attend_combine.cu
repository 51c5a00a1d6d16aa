#line 4 "templates/attend_combine/kernel.cu"
// Generated from templates/attend_combine for sm90a. Do not edit.
//
// attend_combine: O[t, h, :] = rotated back(sum_s w_s * part_s / (sum_s w_s * sum_s + 2^(sink - max))), where
// w_s = 2^(max_s - max), over the splits of templates/attend that have keys, in ascending order.
//
//   operand     shape                        in memory                         written / read
//   workspace   [splits, m, heads, head_dim] f32 sums, then (maximum, sum)     read once
//   o           [m, heads, head_dim]         BF16                              written
//
//   block = head_dim / 4 threads, one token and head, four columns each; grid = (tokens, heads); no shared memory
//
// Exactness: f32 sums in the order of the splits, one rounding to BF16.
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
#line 17 "templates/attend_combine/kernel.cu"
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
#line 18 "templates/attend_combine/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids ahead have ended and their writes are visible. Before it a kernel reads
// only what no kernel writes, and writes nothing; every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 19 "templates/attend_combine/kernel.cu"
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
#line 20 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(*m_on_device, m_capacity);
}
#line 21 "templates/attend_combine/kernel.cu"
#line 1 "templates/lib/attended.cuh"
// The keys of a token in the order in which they are summed: its window from the oldest position on, then its entries.

// Which compressed entries are attended.
enum class Compressed { kNone, kListed, kAll };

// Whole tiles of keys, end exclusive.
struct TileRange {
  int begin;
  int end;
};

template <class Config>
struct Attended {
  int first_position;  // oldest position in the window
  int n_window;
  int n_keys;

  __device__ __forceinline__ explicit Attended(int position) {
    first_position = larger(0, position - Config::kWindow + 1);
    n_window = position - first_position + 1;
    const int visible = (position + 1) / Config::kRatio;
    int n_entries = 0;
    if constexpr (Config::kCompressed == Compressed::kListed) n_entries = smaller(visible, Config::kTopK);
    if constexpr (Config::kCompressed == Compressed::kAll) n_entries = visible;
    n_keys = n_window + n_entries;
  }

  // Split boundaries depend on the position and the number of splits only, never on the batch. With fewer tiles than
  // splits some ranges are empty.
  __device__ __forceinline__ TileRange range(int split, int splits) const {
    const int n_tiles = ceil_divide(n_keys, Config::kKeyTile);
    return {n_tiles * split / splits, n_tiles * (split + 1) / splits};
  }
};

// log2(e), rounded.
constexpr float kLog2E = 1.44269502162933349609375f;

// Rotation by minus the angle whose (cos, sin) is `turn`.
__device__ __forceinline__ float2 rotated_back(float2 pair, float2 turn) {
  return make_float2(__fmaf_rn(pair.y, turn.y, pair.x * turn.x), __fmaf_rn(-pair.x, turn.y, pair.y * turn.x));
}
#line 22 "templates/attend_combine/kernel.cu"

struct Config {
  static constexpr Compressed kCompressed = Compressed::kListed;
  static constexpr int kHeads = 64;
  static constexpr int kHeadDim = 512;
  static constexpr int kRopeDim = 64;   // last columns, rotated
  static constexpr int kWindow = 128;
  static constexpr int kRatio = 4;        // tokens of an entry
  static constexpr int kTopK = 512;         // length of a list
  static constexpr int kKeyTile = 64;   // splits end on such tiles
};
static_assert(Config::kRopeDim % 4 == 0, "a thread's columns are rotated, or they are not");

extern "C" __global__ void __launch_bounds__(Config::kHeadDim / 4, 1)
    attend_combine(const float* workspace, const float* sinks, const float2* rope, const int* positions, bf16* o,
                   const int* m_on_device, int m, int splits) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.x;
  if (token >= actual_tokens(m_on_device, m)) return;
  const int position = positions[token];
  const Attended<Config> attended(position);
  const int64_t rows = int64_t{m} * Config::kHeads;
  const int64_t row = int64_t{token} * Config::kHeads + blockIdx.y;
  const float2* statistics = reinterpret_cast<const float2*>(workspace + splits * rows * Config::kHeadDim) + row;
  float most = -__int_as_float(0x7F800000);
  for (int split = 0; split < splits; ++split) {
    const TileRange range = attended.range(split, splits);
    if (range.begin < range.end) most = fmaxf(most, statistics[split * rows].x);
  }
  const int column = threadIdx.x * 4;
  float2 left = make_float2(0.0f, 0.0f);
  float2 right = make_float2(0.0f, 0.0f);
  float sum = 0.0f;
#pragma unroll 4
  for (int split = 0; split < splits; ++split) {
    const TileRange range = attended.range(split, splits);
    if (range.begin == range.end) continue;  // nothing was written
    const float2 of_split = statistics[split * rows];
    const float weight = exp2_defined(of_split.x - most);
    const float4 part =
        *reinterpret_cast<const float4*>(workspace + (split * rows + row) * Config::kHeadDim + column);
    sum = __fmaf_rn(weight, of_split.y, sum);
    left = make_float2(__fmaf_rn(weight, part.x, left.x), __fmaf_rn(weight, part.y, left.y));
    right = make_float2(__fmaf_rn(weight, part.z, right.x), __fmaf_rn(weight, part.w, right.y));
  }
  const float inverse = 1.0f / (sum + exp2_defined(sinks[blockIdx.y] * kLog2E - most));
  left = make_float2(left.x * inverse, left.y * inverse);
  right = make_float2(right.x * inverse, right.y * inverse);
  const int rotated = column - (Config::kHeadDim - Config::kRopeDim);
  if (rotated >= 0) {
    const float2* turns = rope + int64_t{position} * (Config::kRopeDim / 2) + rotated / 2;
    left = rotated_back(left, turns[0]);
    right = rotated_back(right, turns[1]);
  }
  const uint2 bits = make_uint2(pair_from_floats(left.x, left.y), pair_from_floats(right.x, right.y));
  *reinterpret_cast<uint2*>(o + row * Config::kHeadDim + column) = bits;
}
