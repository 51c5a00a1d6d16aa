#line 4 "templates/quantise/kernel.cu"
// Generated from templates/quantise for sm90a. Do not edit.
//
// quantise: BF16 tokens to NVFP4 or FP8, one f32 scale for each token, bit for bit what src/quant/activation.rs and
// src/quant/fp8.rs make.
//   NVFP4   scale = max(amax, 1e-30) / 2688, block = e4m3(amax_16 / (6 * scale)), code = e2m1(x / (block * scale))
//   FP8     scale = max(amax, 1e-30) / 448, code = e4m3(x / scale)
//
//   operand       shape            in memory                           written / read
//   x             [m, k]           BF16, row-major, 16-byte rows       read; again from L2 where a row is longer than
//                                                                      16 values a thread
//   codes         [m, k / 2 or k]  low nibble first; FP8 bytes of 16 k written
//                                  in the order of src/quant/a8.rs
//   block_scales  [m, k / 16]      e4m3, row-major or 128x4 tiles      written (NVFP4); padding of the tiles as zeros
//   row_scales    [m]              f32                                 written
//   counters      [3] uint32       saturated blocks, non-finite        added to; the third is the complement of the
//                                  values, place of the first          least row * k + column, 0 while there is none
//
//   block = kThreads threads, one token; grid = tokens (rounded up to 128 for tiles); shared memory: a maximum a warp
//
// NaN and infinities take no part in an amax, their codes are 0, and they are counted: never hidden as a large number.
// Limits: k in whole blocks of 16. Bits: IEEE division and round-to-nearest only, compiled with --fmad=false.
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
#line 26 "templates/quantise/kernel.cu"
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
#line 27 "templates/quantise/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 28 "templates/quantise/kernel.cu"
#line 1 "templates/arch/sm90a/fp8.cuh"
// FP8 conversion with one rounding.

// cvt.rn.satfinite.e4m3x2.f32: two floats to two E4M3 codes, `low` in the low byte; nearest, saturating at 448.
__device__ __forceinline__ uint32_t e4m3_pair_from_floats(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
#line 29 "templates/quantise/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 30 "templates/quantise/kernel.cu"
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
#line 31 "templates/quantise/kernel.cu"

struct Config {
  static constexpr bool kIsNvfp4 = true;
  static constexpr int kThreads = 256;
};

constexpr float kAmaxFloor = 1e-30f;
constexpr float kSaturatedAbove = 448.0f + 1.0f / 4096.0f;

__device__ __forceinline__ float value_of_e4m3(uint32_t byte) {
  // No sign: block scales have none.
  return byte < 8 ? byte * 0.001953125f : __uint_as_float((byte << 20) + 0x3C000000u);
}

// Nearest E2M1, ties to the even code, saturating at 6; `x` is finite.
__device__ __forceinline__ uint32_t e2m1_of(float x) {
  const float magnitude = fabsf(x);
  const uint32_t code = magnitude <= 0.25f   ? 0u
                        : magnitude < 0.75f  ? 1u
                        : magnitude <= 1.25f ? 2u
                        : magnitude < 1.75f  ? 3u
                        : magnitude <= 2.5f  ? 4u
                        : magnitude < 3.5f   ? 5u
                        : magnitude <= 5.0f  ? 6u
                                             : 7u;
  return code | (__float_as_uint(x) >> 28 & 8u);
}

// Sixteen values of a row; what is not finite comes as zero and is counted.
struct Block {
  float values[16];
  float amax = 0.0f;
  uint32_t first_bad = 0;  // 1 + place in the block
  uint32_t n_bad = 0;

  __device__ __forceinline__ void load(const bf16* from) {
    float halves[2][8];
    load_eight(halves[0], from);
    load_eight(halves[1], from + 8);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float x = halves[i / 8][i % 8];
      values[i] = is_finite(x) ? x : 0.0f;
      if (!is_finite(x)) {
        if (n_bad == 0) first_bad = i + 1;
        ++n_bad;
      }
      amax = fmaxf(amax, fabsf(values[i]));
    }
  }

  // Counts what is not finite; the block begins at `place`.
  __device__ __forceinline__ void count_bad(unsigned* counters, uint32_t place) const {
    if (n_bad == 0) return;
    atomicAdd(counters + 1, n_bad);
    // The least place wins: stored as the complement, so that zero stays "none" and a maximum finds it.
    atomicMax(counters + 2, ~(place + first_bad - 1));
  }
};

// Codes of a block under an E4M3 block scale and the row's `scale`.
__device__ __forceinline__ void store_nvfp4(uint8_t* to, const Block& block, uint32_t block_scale, float scale) {
  const float divisor = value_of_e4m3(block_scale) * scale;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t low = e2m1_of(block.values[2 * i] / divisor);
    const uint32_t high = e2m1_of(block.values[2 * i + 1] / divisor);
    to[i] = block_scale == 0 ? 0 : low | high << 4;
  }
}

// FP8 codes in the order of operands: byte i of word c is k { 2c + 8, 2c, 2c + 9, 2c + 1 }[i].
__device__ __forceinline__ uint4 fp8_of(const Block& block, float scale) {
  uint32_t words[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const uint32_t even = e4m3_pair_from_floats(block.values[2 * c + 8] / scale, block.values[2 * c] / scale);
    const uint32_t odd = e4m3_pair_from_floats(block.values[2 * c + 9] / scale, block.values[2 * c + 1] / scale);
    words[c] = even | odd << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Largest value of the block of threads, for all of them.
__device__ __forceinline__ float block_maximum(float value) {
  __shared__ float warps[32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float maximum = 0.0f;
  for (int warp = 0; warp < Config::kThreads / 32; ++warp) maximum = fmaxf(maximum, warps[warp]);
  return maximum;
}

// Where the scale of block `column` of `row` stands: row-major, or in tiles of 128 rows x 4 columns.
__device__ __forceinline__ int64_t scale_place(int row, int column, int columns, int is_tiled) {
  if (!is_tiled) return int64_t{row} * columns + column;
  const int64_t tile = int64_t{row / 128} * ceil_divide(columns, 4) + column / 4;
  return tile * 512 + row % 32 * 16 + row / 32 % 4 * 4 + column % 4;
}

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    quantise(const bf16* x, uint8_t* codes, uint8_t* block_scales, float* row_scales, unsigned* counters,
             const int* m_on_device, int64_t ldx, int m, int k, int is_tiled) {
  launch_dependents();
  wait_for_dependency();
  const int row = blockIdx.x;
  const int n_blocks = ceil_divide(k, 16);
  const int padded_blocks = is_tiled ? round_up(n_blocks, 4) : n_blocks;
  if (row >= actual_tokens(m_on_device, m)) {
    if (Config::kIsNvfp4 && is_tiled) {
      for (int b = threadIdx.x; b < padded_blocks; b += Config::kThreads) {
        block_scales[scale_place(row, b, n_blocks, is_tiled)] = 0;
      }
    }
    return;
  }
  const bf16* from = x + row * ldx;
  const uint32_t place = static_cast<uint32_t>(row) * k;
  // The thread's first block stays in registers: for most rows it is its only one.
  const int first = threadIdx.x;
  Block own;
  if (first < n_blocks) {
    own.load(from + first * 16);
    own.count_bad(counters, place + first * 16);
  }
  float amax = own.amax;
  for (int b = first + Config::kThreads; b < n_blocks; b += Config::kThreads) {
    Block block;
    block.load(from + b * 16);
    block.count_bad(counters, place + b * 16);
    amax = fmaxf(amax, block.amax);
  }
  const float scale = fmaxf(block_maximum(amax), kAmaxFloor) / (Config::kIsNvfp4 ? 2688.0f : 448.0f);
  if (threadIdx.x == 0) row_scales[row] = scale;
  const auto convert = [&](const Block& block, int b) {
    if constexpr (Config::kIsNvfp4) {
      const float wanted = block.amax / (6.0f * scale);
      if (wanted > kSaturatedAbove) atomicAdd(counters, 1u);
      const uint32_t block_scale = e4m3_pair_from_floats(wanted, 0.0f);
      block_scales[scale_place(row, b, n_blocks, is_tiled)] = block_scale;
      store_nvfp4(codes + int64_t{row} * (k / 2) + b * 8, block, block_scale, scale);
    } else {
      *reinterpret_cast<uint4*>(codes + int64_t{row} * k + b * 16) = fp8_of(block, scale);
    }
  };
  if (first < n_blocks) convert(own, first);
  for (int b = first + Config::kThreads; b < n_blocks; b += Config::kThreads) {
    Block block;
    block.load(from + b * 16);
    convert(block, b);
  }
  if constexpr (Config::kIsNvfp4) {
    for (int b = n_blocks + first; b < padded_blocks; b += Config::kThreads) {
      block_scales[scale_place(row, b, n_blocks, is_tiled)] = 0;
    }
  }
}
