$#-
  op: src/kernels/runner/fake_quantise.rs   arch: templates/arch/   (tokens and strides are run-time arguments)
-#$
// Generated from templates/amax for ${ arch.name }$. Do not edit.
//
// amax: *amax = max(*amax, |x|) over the finite elements of all rows; or with kIsReset *amax = 0.
//
//   operand   shape       in memory                written / read
//   x         [rows, k]   BF16, rows ldx apart     read once
//   amax      one         bits of f32              raised: as integers the bits of magnitudes have their order
//
//   block = kThreads threads, one row; grid = rows; no shared memory, one atomic maximum a warp
//
// A maximum does not depend on the order of its operands, so the bits are the same in every run.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"

struct Config {
  static constexpr int kK = ${ op.k }$;
  static constexpr int kRowsPerToken = ${ op.rows_per_token }$;
  static constexpr int kThreads = ${ op.threads }$;
  static constexpr bool kIsReset = ${ op.is_reset }$;
};
static_assert(Config::kK % 8 == 0, "a thread takes eight columns at a time");

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    amax(const bf16* x, unsigned* amax, const int* m_on_device, int64_t ldx, int m) {
  launch_dependents();
  wait_for_dependency();
  if constexpr (Config::kIsReset) {
    if (threadIdx.x == 0) *amax = 0;
    return;
  }
  const int row = blockIdx.x;
  if (row >= actual_tokens(m_on_device, m) * Config::kRowsPerToken) return;
  float largest = 0.0f;
  for (int column = threadIdx.x * 8; column < Config::kK; column += Config::kThreads * 8) {
    float values[8];
    load_eight(values, x + row * ldx + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) largest = fmaxf(largest, finite_magnitude(values[i]));
  }
  largest = lane_maximum(largest, 32);
  if (threadIdx.x % 32 == 0) atomicMax(amax, __float_as_uint(largest));
}
