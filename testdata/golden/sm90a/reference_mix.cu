#line 4 "templates/reference_mix/kernel.cu"
// Generated from templates/reference_mix for sm90a. Do not edit.
//
// reference_mix: the steps of a mix of residual streams, in f64, each rounded once to f32.
//   step 0   R[t, j, c] = post[t, j] * (y0[t, c] + y1[t, c]) + sum_i C[t, i, j] * S[t, i, c]
//   step 1   R[t, r] = sum_i W[r, i] * S[t, i] over all 4 * hidden values of a token, R[t, n] = sum of their squares
//   step 2   R[t, r] = sum over the splits of parts[split, t, r], in ascending order
//
//   operand   shape                  in memory                  written / read
//   streams   [m, 4, hidden]         BF16 or f32, row-major     read (steps 0, 1)
//   y0, y1    [m, hidden]            BF16; y1 may be null       read (step 0)
//   mixing    [m, 20]                f32, post[4] C[4][4]       read (step 0)
//   weights   [n, 4 * hidden]        f32, row-major             read (step 1)
//   parts     [splits, m, n + 1]     f32                        read (step 2)
//   result    [m, 4, hidden] or [m, n + 1]   f32                written
//
//   block = 256 threads, one token after the other; shared memory: a sum a thread, in the order of the threads
//
// It shares no code with templates/hc_mix but the meaning of the operands.
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
#line 23 "templates/reference_mix/kernel.cu"
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
#line 24 "templates/reference_mix/kernel.cu"

using Element = float;

__device__ __forceinline__ double value_of(bf16 value) { return float_of(value); }
__device__ __forceinline__ double value_of(float value) { return value; }

// Sum of `value` over the block, in every thread.
__device__ double block_sum(double value, double* shared) {
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  double sum = 0.0;
  for (int thread = 0; thread < 256; ++thread) sum += shared[thread];
  return sum;
}

extern "C" __global__ void __launch_bounds__(256)
    reference_mix(int step, const Element* streams, const bf16* y0, const bf16* y1, const float* mixing,
                  const float* weights, const float* parts, float* result, int m, int hidden, int n, int splits) {
  __shared__ double shared[256];
  const int64_t k = int64_t{4} * hidden;
  for (int64_t token = blockIdx.x; token < m; token += gridDim.x) {
    const Element* h = streams + token * k;
    if (step == 0) {
      const float* mix = mixing + token * 20;
      for (int64_t i = threadIdx.x; i < k; i += 256) {
        const int64_t stream = i / hidden, column = i % hidden;
        double y = value_of(y0[token * hidden + column]);
        if (y1 != nullptr) y += value_of(y1[token * hidden + column]);
        double sum = mix[stream] * y;
        for (int from = 0; from < 4; ++from) {
          sum += double(mix[4 + 4 * from + stream]) * value_of(h[from * int64_t{hidden} + column]);
        }
        result[token * k + i] = static_cast<float>(sum);
      }
    } else if (step == 1) {
      for (int row = 0; row <= n; ++row) {
        double sum = 0.0;
        for (int64_t i = threadIdx.x; i < k; i += 256) {
          const double value = value_of(h[i]);
          sum += value * (row < n ? double(weights[row * k + i]) : value);
        }
        sum = block_sum(sum, shared);
        if (threadIdx.x == 0) result[token * (n + 1) + row] = static_cast<float>(sum);
      }
    } else {
      for (int row = threadIdx.x; row <= n; row += 256) {
        double sum = 0.0;
        for (int split = 0; split < splits; ++split) sum += parts[(int64_t{split} * m + token) * (n + 1) + row];
        result[token * (n + 1) + row] = static_cast<float>(sum);
      }
    }
  }
}
