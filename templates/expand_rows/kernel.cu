$#-
  op: src/kernels/runner/routing.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/expand_rows for ${ arch.name }$. Do not edit.
//
// expand_rows: out[t * top_k + s, :] = x[t, :] for every slot s of token t.
//
//   operand   shape                   in memory         written / read
//   x         [m, hidden]             BF16, row-major   read once
//   out       [m * top_k, hidden]     BF16, row-major   written
//
//   block = threads of eight columns each; grid = (column blocks, tokens); no shared memory, no barriers
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
  static constexpr int kTopK = ${ op.top_k }$;
};

extern "C" __global__ void __launch_bounds__(256)
    expand_rows(const bf16* x, bf16* out, const int* m_on_device, int m) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.y;
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (token >= actual_tokens(m_on_device, m) || column >= Config::kHidden) return;
  const uint4 piece = *reinterpret_cast<const uint4*>(x + int64_t{token} * Config::kHidden + column);
  bf16* to = out + int64_t{token} * Config::kTopK * Config::kHidden + column;
#pragma unroll
  for (int slot = 0; slot < Config::kTopK; ++slot) *reinterpret_cast<uint4*>(to + slot * Config::kHidden) = piece;
}
