$#-
  arch: templates/arch/   (shapes are run-time arguments)
-#$
// Generated from templates/quantise for ${ arch.name }$. Do not edit.
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
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "arch/fp8.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"

struct Config {
  static constexpr bool kIsNvfp4 = ${ problem.is_nvfp4 }$;
  static constexpr int kThreads = ${ tile.threads }$;
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
