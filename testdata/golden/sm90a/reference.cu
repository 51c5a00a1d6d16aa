#line 4 "templates/reference/kernel.cu"
// Generated from templates/reference for sm90a. Do not edit.
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
#line 24 "templates/reference/kernel.cu"
#line 1 "templates/lib/raw.cuh"
// Weights as checkpoints hold them, one value at a time. For packing and for the reference, not for speed.
//
//   codes    e2m1: [rows, k / 2], low nibble first   e4m3: [rows, k]   BF16: [rows, k]
//   scales   NVFP4: e4m3 [rows, k / 16]   MXFP4: ue8m0 [rows, k / 32]   FP8: ue8m0 [scale rows, ceil(k / 128)]

struct Raw {
  const uint8_t* codes;
  const uint8_t* scales;
  int k;
};

// Rows of the FP8 scale grid above `row`. Stacked gate and up halves of `half_rows` rows have a grid each.
__device__ __forceinline__ int fp8_scale_row(int row, int half_rows) {
  if (half_rows == 0) return row / 128;
  return row < half_rows ? row / 128 : ceil_divide(half_rows, 128) + (row - half_rows) / 128;
}

__device__ __forceinline__ uint32_t raw_e2m1(const Raw& raw, int64_t row, int k) {
  const uint8_t pair = raw.codes[row * (raw.k / 2) + k / 2];
  return k % 2 == 0 ? pair & 15u : pair >> 4;
}

// The value of a code as a double: exact for every format.
__device__ __forceinline__ double value_of_e2m1(uint32_t code) {
  const uint32_t magnitude = code & 7;
  const double value = magnitude < 2 ? 0.5 * magnitude : ldexp(1.0 + 0.5 * (magnitude & 1), int(magnitude >> 1) - 1);
  return code & 8 ? -value : value;
}

__device__ __forceinline__ double value_of_e4m3(uint32_t byte) {
  const int exponent = byte >> 3 & 15;
  const double mantissa = byte & 7;
  const double value = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8.0 + mantissa, exponent - 10);
  return byte & 0x80 ? -value : value;
}

__device__ __forceinline__ double value_of_ue8m0(uint32_t byte) { return ldexp(1.0, int(byte) - 127); }
#line 25 "templates/reference/kernel.cu"
#line 1 "templates/lib/raw_formats.cuh"
// The four formats of raw weights under one name each: value(raw, row, k) is the weight, exactly.

struct RawNvfp4 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int) {
    return value_of_e2m1(raw_e2m1(raw, row, k)) * value_of_e4m3(raw.scales[row * (raw.k / 16) + k / 16]);
  }
};

struct RawMxfp4 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int) {
    return value_of_e2m1(raw_e2m1(raw, row, k)) * value_of_ue8m0(raw.scales[row * (raw.k / 32) + k / 32]);
  }
};

struct RawFp8 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int half_rows) {
    const uint8_t scale = raw.scales[int64_t{fp8_scale_row(row, half_rows)} * ceil_divide(raw.k, 128) + k / 128];
    return value_of_e4m3(raw.codes[row * raw.k + k]) * value_of_ue8m0(scale);
  }
};

struct RawBf16 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int) {
    return float_of(reinterpret_cast<const bf16*>(raw.codes)[row * raw.k + k]);
  }
};

// Tokens: value(a, row, k) is A's element `k` of the row that begins at element `row`.
struct RawBf16Tokens {
  static __device__ __forceinline__ double value(const void* a, int64_t row, int k) {
    return float_of(static_cast<const bf16*>(a)[row + k]);
  }
};

// E4M3, each 16 in the order of FP8 operands: position 4c + i holds k { 2c + 8, 2c, 2c + 9, 2c + 1 }[i].
struct RawE4m3Tokens {
  static __device__ __forceinline__ double value(const void* a, int64_t row, int k) {
    const int c = k % 8 / 2, i = k % 2 * 2 + (k % 16 < 8);
    return value_of_e4m3(static_cast<const uint8_t*>(a)[row + k / 16 * 16 + 4 * c + i]);
  }
};
#line 26 "templates/reference/kernel.cu"

using Format = RawNvfp4;
using Tokens = RawBf16Tokens;
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
