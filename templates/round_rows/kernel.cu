$#-
  tile: src/kernels/round_rows.rs   arch: templates/arch/   (rows, sizes and strides are run-time arguments)
-#$
// Generated from templates/round_rows for ${ arch.name }$. Do not edit.
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
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "arch/fp8.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"

struct Config {
  static constexpr int kThreads = ${ tile.threads }$;
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
