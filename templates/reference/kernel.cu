$#-
  arch: templates/arch/   (shapes and strides are run-time arguments)
-#$
// Generated from templates/reference for ${ arch.name }$. Do not edit.
//
// reference: R[row, g * n + r] = scale[from] * alpha[g, part of r] * sum_k A[from, g * k + k'] * W[g][r, k'] with the
// row's source `from`, in f64 from raw weights. What every candidate is compared with; it shares no code with them but
// the meaning of formats.
//
//   operand   shape                   in memory                             written / read
//   W         [groups][n, k]          raw checkpoint bytes (lib/raw.cuh)    read
//   A         [rows, groups * k]      BF16 or E4M3 codes, row-major         read
//   row_of    [rows] or null          int32: A's row of each result row     read
//   tiles     [n_tiles] int4          group, first row, count <= 64, 0      read; null: dense, all rows in every group
//   alphas    [groups][parts]         f32; a part is n / parts rows         read
//   scales    [rows of A] or null     f32: what a row of A is multiplied by read
//   R         [rows, ldr]             f32, the f64 sum rounded once         written
//
//   block = 256 threads, a tile of 64 rows x 64 columns, 4 x 4 sums a thread; grid = (columns of 64, row tiles, groups)
//   shared memory   64 x 16 doubles of A and of W; two barriers for each 16 k
//
// Exactness: products are exact in f64, sums lose nothing that f32 shows.
#include "lib/words.cuh"
#include "lib/raw.cuh"
#include "lib/raw_formats.cuh"

using Format = Raw${ problem.weights }$;
using Tokens = Raw${ problem.tokens }$Tokens;
constexpr int kTile = 64;
constexpr int kDepth = 16;

extern "C" __global__ void __launch_bounds__(256)
    reference(const uint8_t* codes, const uint8_t* scales, const void* a, const int* row_of, const int4* tiles,
              float* r, int64_t lda, int64_t ldr, int64_t group_code_bytes, int64_t group_scale_bytes, int m, int n,
              int k, int half_rows, const float* alphas, int parts, const float* row_scales) {
  __shared__ double a_part[kTile][kDepth + 1];
  __shared__ double w_part[kTile][kDepth + 1];
  const bool is_listed = tiles != nullptr;
  const int first = blockIdx.y * kTile;
  const int4 tile = is_listed ? tiles[blockIdx.y] : make_int4(blockIdx.z, first, smaller(kTile, m - first), 0);
  const Raw raw{codes + tile.x * group_code_bytes, scales + tile.x * group_scale_bytes, k};
  const int first_column = blockIdx.x * kTile;
  const int a_column = is_listed ? 0 : tile.x * k;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  double sums[4][4] = {};
  for (int base = 0; base < k; base += kDepth) {
    for (int i = threadIdx.x; i < kTile * kDepth; i += 256) {
      const int line = i / kDepth, at = base + i % kDepth;
      const int row = tile.y + line, column = first_column + line;
      const bool has_a = line < tile.z && at < k, has_w = column < n && at < k;
      const int64_t from = has_a ? (row_of == nullptr ? row : row_of[row]) : 0;
      a_part[line][i % kDepth] = has_a ? Tokens::value(a, from * lda + a_column, at) : 0.0;
      w_part[line][i % kDepth] = has_w ? Format::value(raw, column, at, half_rows) : 0.0;
    }
    __syncthreads();
#pragma unroll
    for (int at = 0; at < kDepth; ++at) {
      double a_values[4], w_values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a_values[i] = a_part[y + 16 * i][at];
        w_values[i] = w_part[x + 16 * i][at];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = __fma_rn(a_values[i], w_values[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int line = y + 16 * i, column = first_column + x + 16 * j;
      if (line >= tile.z || column >= n) continue;
      const int64_t r_column = is_listed ? column : int64_t{tile.x} * n + column;
      const double alpha = alphas[tile.x * parts + column / (n / parts)];
      const int a_row = row_of == nullptr ? tile.y + line : row_of[tile.y + line];
      const double row_scale = row_scales == nullptr ? 1.0 : row_scales[a_row];
      r[(tile.y + line) * ldr + r_column] = static_cast<float>(sums[i][j] * alpha * row_scale);
    }
  }
}
