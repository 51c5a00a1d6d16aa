$#-
  op: src/kernels/runner/finite.rs   arch: templates/arch/   (shapes are run-time arguments)
-#$
// Generated from templates/find_non_finite for ${ arch.name }$. Do not edit.
//
// find_non_finite: where the first NaN or infinity of x stands, how many there are, the largest finite magnitude.
//
//   operand   shape                             in memory                   written / read
//   x         [m * rows_per_token, columns]     Element, rows ldx apart     read once
//   report    [3]                               uint64                      raised: number of elements not finite;
//                                               complement of the least row * columns + column of one, 0 while there
//                                               is none; bits of the largest finite magnitude, as f32
//
//   block = 256 threads, stride over the elements; no shared memory, at most three atomics a warp
//
// Counts and maxima do not depend on the order of their operands: the same report in every run.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"

using Element = ${ op.element }$;

__device__ __forceinline__ float value_of(bf16 value) { return float_of(value); }
__device__ __forceinline__ float value_of(float value) { return value; }

extern "C" __global__ void __launch_bounds__(256)
    find_non_finite(const Element* x, unsigned long long* report, const int* m_on_device, int64_t ldx, int m,
                    int rows_per_token, int columns) {
  launch_dependents();
  wait_for_dependency();
  const int64_t count = int64_t{actual_tokens(m_on_device, m)} * rows_per_token * columns;
  unsigned long long n_bad = 0, first = 0;
  uint32_t largest = 0;
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const float value = value_of(x[i / columns * ldx + i % columns]);
    const uint32_t magnitude = __float_as_uint(fabsf(value));
    if (is_finite(value)) {
      largest = magnitude > largest ? magnitude : largest;
    } else {
      ++n_bad;
      // Places ascend, so a thread's first is its least: as a complement the largest.
      if (first == 0) first = ~static_cast<unsigned long long>(i);
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    n_bad += __shfl_xor_sync(~0u, n_bad, step);
    const unsigned long long other_first = __shfl_xor_sync(~0u, first, step);
    const uint32_t other_largest = __shfl_xor_sync(~0u, largest, step);
    first = other_first > first ? other_first : first;
    largest = other_largest > largest ? other_largest : largest;
  }
  if (threadIdx.x % 32 != 0) return;
  if (n_bad > 0) {
    atomicAdd(report, n_bad);
    atomicMax(report + 1, first);
  }
  if (largest > 0) atomicMax(report + 2, static_cast<unsigned long long>(largest));
}
