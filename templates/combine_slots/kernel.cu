$#-
  op: src/kernels/runner/routing.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/combine_slots for ${ arch.name }$. Do not edit.
//
// combine_slots: out[t, :] = sum over slots s, ascending, of weights[t][s] * y[t * top_k + s, :].
//
//   operand   shape                   in memory         written / read
//   y         [m * top_k, hidden]     BF16, row-major   read once
//   weights   [m, top_k]              f32               read
//   out       [m, hidden]             BF16, row-major   written
//
//   block = threads of eight columns each; grid = (column blocks, tokens); no shared memory, no barriers
//
// Exactness: FMA in f32 from zero, one rounding at the end.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
  static constexpr int kTopK = ${ op.top_k }$;
};

extern "C" __global__ void __launch_bounds__(256)
    combine_slots(const bf16* y, const float* weights, bf16* out, const int* m_on_device, int m) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.y;
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (token >= actual_tokens(m_on_device, m) || column >= Config::kHidden) return;
  float sums[8] = {};
#pragma unroll
  for (int slot = 0; slot < Config::kTopK; ++slot) {
    const int64_t row = int64_t{token} * Config::kTopK + slot;
    const float weight = weights[row];
    float values[8];
    load_eight(values, y + row * Config::kHidden + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = __fmaf_rn(weight, values[i], sums[i]);
  }
  store_eight(out + int64_t{token} * Config::kHidden + column, sums);
}
