$#-
  arch: templates/arch/   (shapes are run-time arguments)
-#$
// Generated from templates/reference_mix for ${ arch.name }$. Do not edit.
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
#include "lib/words.cuh"
#include "arch/bf16.cuh"

using Element = ${ problem.element }$;

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
