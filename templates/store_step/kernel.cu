$#-
  op: src/kernels/runner/store.rs   arch: templates/arch/   (tokens and strides are run-time arguments)
-#$
// Generated from templates/store_step for ${ arch.name }$. Do not edit.
//
// store_step: ring[slot, p % rows] = what this step made of position p, for the last rows of each sequence in the step:
// keys to the window ring, c and g + ape to the state rings of the compressors. It runs after all that reads the rings.
//
//   operand        shape                          in memory                        written / read
//   kv_step        [m, head_dim]                  BF16                             read once
//   kv_ring        [slots, window, head_dim]      BF16                             written
//   cg, index_cg   [m, 2 * width]                 f32, strides: c, then g          read once
//   state, ..      [slots, rows, 2 * width]       f32: c, then g + ape             written
//
//   block = kThreads threads, one token; grid = tokens; no shared memory, no barriers
//
// Steps of few tokens do without this launch: templates/attend_combine stores there.
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/step_rows.cuh"

struct Config {
  static constexpr int kHeadDim = ${ op.head_dim }$;
  static constexpr int kWindow = ${ op.window }$;
  static constexpr int kStateWidth = ${ op.state_width }$;  // columns of c in attention's compressor; 0: it has none
  static constexpr int kStateRows = ${ op.state_rows }$;
  static constexpr int kStateRatio = ${ op.state_ratio }$;
  static constexpr int kIndexWidth = ${ op.index_width }$;  // the same for the indexer's
  static constexpr int kIndexRows = ${ op.index_rows }$;
  static constexpr int kIndexRatio = ${ op.index_ratio }$;
  static constexpr int kThreads = 256;
};

extern "C" __global__ void __launch_bounds__(Config::kThreads, 1)
    store_step(const bf16* kv_step, bf16* kv_ring, const float* cg, const float* ape, float* state,
               const float* index_cg, const float* index_ape, float* index_state, const int* positions,
               const int* sequences, const int* m_on_device, int64_t ld_cg, int64_t ld_index_cg, int m) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.x;
  const int position = positions[token];  // asked for together with the number of tokens
  const int slot = sequences[token];
  const int n_tokens = actual_tokens(m_on_device, m);
  if (token >= n_tokens) return;
  const StepRows rows{kv_step, kv_ring, cg, ape, state, index_cg, index_ape, index_state, ld_cg, ld_index_cg};
  rows.store<Config, Config::kThreads>(sequences, token, n_tokens, slot, position);
}
