$#-
  op: src/kernels/runner/streams.rs   arch: templates/arch/   (rows are run-time data)
-#$
// Generated from templates/gather_rows for ${ arch.name }$. Do not edit.
//
// gather_rows: out[i, :] = x[rows[i], :], such as the last token of each sequence.
//
//   operand          shape             in memory                 written / read
//   x                [any, hidden]     BF16, row-major           a row each
//   rows             [count]           int32                     read
//   out              [count, hidden]   BF16, row-major           written
//   count_on_device  one               int32, or null for all    read
//
//   block = threads of eight columns each; grid = (column blocks, rows); no shared memory, no barriers
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
};

extern "C" __global__ void __launch_bounds__(256)
    gather_rows(const bf16* x, const int* rows, bf16* out, const int* count_on_device, int count) {
  launch_dependents();
  wait_for_dependency();
  const int row = blockIdx.y;
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (row >= actual_tokens(count_on_device, count) || column >= Config::kHidden) return;
  const uint4 piece = *reinterpret_cast<const uint4*>(x + int64_t{rows[row]} * Config::kHidden + column);
  *reinterpret_cast<uint4*>(out + int64_t{row} * Config::kHidden + column) = piece;
}
