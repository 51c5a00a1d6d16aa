$#-
  arch: templates/arch/   (shapes are run-time arguments)
-#$
// Generated from templates/reference_moe for ${ arch.name }$. Do not edit.
//
// reference_moe: the two steps of a block of experts that are no products, in f64.
//   step 0   V = silu(min(S[row, i], limit)) * clamp(S[row, columns + i], -limit, limit), S = sums of gate and up;
//            H[row, i] = bf16(V), R[row, i] = V, whichever is not null
//   step 1   R[t, i] = sum over the slots s of token t, ascending, of weight[slot] * P[row of slot, i], as f32
//
//   operand    shape                   in memory            written / read
//   sums       [rows, 2 * columns]     f32                  read (step 0); [slots, columns] products (step 1)
//   row_of     [m * top_k]             int32, -1: skipped   read (step 1): where the slot's product stands
//   weight     [m * top_k]             f32                  read (step 1)
//   hidden     [rows, columns]         BF16                 written (step 0)
//   result     [rows, columns]         f32                  written
//
//   block = 256 threads, grid-stride over the elements; no shared memory, no barriers
#include "lib/words.cuh"
#include "arch/bf16.cuh"

extern "C" __global__ void __launch_bounds__(256)
    reference_moe(int step, const float* sums, const int* row_of, const float* weight, bf16* hidden, float* result,
                  int rows, int columns, int top_k, double limit) {
  const int64_t count = int64_t{rows} * columns;
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const int64_t row = i / columns;
    const int column = i % columns;
    if (step == 0) {
      double gate = sums[row * 2 * columns + column];
      double up = sums[row * 2 * columns + columns + column];
      gate = gate > limit ? limit : gate;
      up = up > limit ? limit : up < -limit ? -limit : up;
      const float value = static_cast<float>(gate / (1.0 + exp(-gate)) * up);
      if (hidden != nullptr) hidden[i] = bf16_from_float(value);
      if (result != nullptr) result[i] = value;
    } else {
      double sum = 0.0;
      for (int s = 0; s < top_k; ++s) {
        const int from = row_of[row * top_k + s];
        if (from >= 0) sum += double(weight[row * top_k + s]) * sums[int64_t{from} * columns + column];
      }
      result[i] = static_cast<float>(sum);
    }
  }
}
