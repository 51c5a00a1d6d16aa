#line 4 "templates/round_rows/kernel.cu"
// Generated from templates/round_rows for sm120a. Do not edit.
//
// round_rows: BF16 rows to what FP8 makes of them, one f32 scale for each row; the values that templates/quantise gives
// as codes, kept in BF16, which has room for every E4M3, and in natural order of k. For tensor cores that take BF16.
//   scale = max(amax, 1e-30) / 448, value = e4m3(x / scale)
//
//   operand      shape       in memory                        written / read
//   x            [rows, k]   BF16, row-major, 16-byte rows    read; again from L2 where a row is longer than 8 values a
//                                                             thread
//   values       [rows, k]   BF16, rows k apart               written
//   row_scales   [rows]      f32                              written
//   counters     [3] uint32  saturated blocks, non-finite     added to, but the first: a row's scale saturates nothing;
//                            values, place of the first       the third is the complement of the least row * k + column
//   experts      [rows]      int32, or null                   read: rows of experts that are not of this rank are left
//   row_count    [1]         int32, or null                   read: `rows_per_token` times this many rows, at most m
//
//   block = kThreads threads, one row; grid = rows; shared memory: a maximum a warp
//
// NaN and infinities take no part in an amax, their values are 0, and they are counted: never hidden as a large number.
// Limits: k in whole pieces of 8. Bits: IEEE division and round-to-nearest only, compiled with --fmad=false.
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
#line 25 "templates/round_rows/kernel.cu"
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
#line 26 "templates/round_rows/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids ahead have ended and their writes are visible. Before it a kernel reads
// only what no kernel writes, and writes nothing; every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 27 "templates/round_rows/kernel.cu"
#line 1 "templates/arch/sm90a/fp8.cuh"
// FP8 conversion with one rounding.

// cvt.rn.satfinite.e4m3x2.f32: two floats to two E4M3 codes, `low` in the low byte; nearest, saturating at 448.
__device__ __forceinline__ uint32_t e4m3_pair_from_floats(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
#line 28 "templates/round_rows/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 29 "templates/round_rows/kernel.cu"
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
#line 30 "templates/round_rows/kernel.cu"
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
#line 31 "templates/round_rows/kernel.cu"

struct Config {
  static constexpr int kThreads = 512;
};

constexpr float kAmaxFloor = 1e-30f;

// Two E4M3 codes to BF16, the low byte in the low half: lifted they are values * 2^-120, subnormal ones too.
__device__ __forceinline__ uint32_t pair_of_e4m3(uint32_t codes) {
  constexpr uint32_t kTwoTo120 = 0x7B807B80u;
  const uint32_t low = (codes & 0x80u) << 8 | (codes & 0x7Fu) << 4;
  const uint32_t high = (codes & 0x8000u) << 16 | (codes & 0x7F00u) << 12;
  return multiply_pairs(low | high, kTwoTo120);
}

// Eight values of a row; what is not finite comes as zero and is counted.
struct Piece {
  float values[8];
  float amax = 0.0f;
  uint32_t first_bad = 0;  // 1 + place in the piece
  uint32_t n_bad = 0;

  __device__ __forceinline__ void load(const bf16* from) {
    load_eight(values, from);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (!is_finite(values[i])) {
        if (n_bad == 0) first_bad = i + 1;
        ++n_bad;
        values[i] = 0.0f;
      }
      amax = fmaxf(amax, fabsf(values[i]));
    }
  }

  // Counts what is not finite; the piece begins at `place`.
  __device__ __forceinline__ void count_bad(unsigned* counters, uint32_t place) const {
    if (n_bad == 0) return;
    atomicAdd(counters + 1, n_bad);
    // The least place wins: stored as the complement, so that zero stays "none" and a maximum finds it.
    atomicMax(counters + 2, ~(place + first_bad - 1));
  }

  // What E4M3 makes of two neighbours under `scale`.
  __device__ __forceinline__ uint32_t rounded(int i, float scale) const {
    return pair_of_e4m3(e4m3_pair_from_floats(values[i] / scale, values[i + 1] / scale));
  }

  __device__ __forceinline__ void store(bf16* to, float scale) const {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(rounded(0, scale), rounded(2, scale), rounded(4, scale), rounded(6, scale));
  }
};

// Largest value of the block of threads, for all of them.
__device__ __forceinline__ float block_maximum(float value) {
  __shared__ float warps[Config::kThreads / 32];
  value = lane_maximum(value, 32);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float maximum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < Config::kThreads / 32; ++warp) maximum = fmaxf(maximum, warps[warp]);
  return maximum;
}

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    round_rows(const bf16* x, bf16* values, float* row_scales, unsigned* counters, const int* experts,
               const int* row_count, int64_t ldx, int m, int k, int rows_per_token, int expert_offset, int n_local) {
  launch_dependents();
  wait_for_dependency();
  const int row = blockIdx.x;
  if (row >= actual_tokens(row_count, m) * rows_per_token) return;
  // A foreign slot has no hidden row: what stands there is from another step.
  if (experts != nullptr) {
    const int expert = __ldcg(experts + row) - expert_offset;
    if (expert < 0 || expert >= n_local) return;
  }
  const int n_pieces = k / 8;
  const bf16* from = x + row * ldx;
  bf16* to = values + int64_t{row} * k;
  const uint32_t place = static_cast<uint32_t>(row) * k;
  // The thread's first piece stays in registers: for most rows it is its only one.
  const int first = threadIdx.x;
  Piece own;
  if (first < n_pieces) {
    own.load(from + first * 8);
    own.count_bad(counters, place + first * 8);
  }
  float amax = own.amax;
  for (int p = first + Config::kThreads; p < n_pieces; p += Config::kThreads) {
    Piece piece;
    piece.load(from + p * 8);
    piece.count_bad(counters, place + p * 8);
    amax = fmaxf(amax, piece.amax);
  }
  const float scale = fmaxf(block_maximum(amax), kAmaxFloor) / 448.0f;
  if (threadIdx.x == 0) row_scales[row] = scale;
  if (first < n_pieces) own.store(to + first * 8, scale);
  for (int p = first + Config::kThreads; p < n_pieces; p += Config::kThreads) {
    Piece piece;
    piece.load(from + p * 8);
    piece.store(to + p * 8, scale);
  }
}
