$#-
  op: src/kernels/runner/sampling.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/advance for ${ arch.name }$. Do not edit.
//
// advance: the arrays of a decode step become those of the next one, where each row is its sequence's only token.
//   token_ids[t] = sampled[t], positions[t] += 1, step_start[sequences[t]] = positions[t]
//
//   operand     shape     in memory    written / read
//   sampled     [m]       int32        read
//   token_ids   [m]       int32        written
//   positions   [m]       int32        read and written
//   sequences   [m]       int32        read
//   step_start  [slots]   int32        written, at the sequences of the step
//
//   block = kThreads threads, a token each; grid = blocks of tokens; no shared memory, no barriers
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"

struct Config {
  static constexpr int kThreads = ${ op.threads }$;
};

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    advance(const int* sampled, int* token_ids, int* positions, const int* sequences, int* step_start,
            const int* m_on_device, int m) {
  // No launch_dependents: what follows may read these arrays before it waits (lib/step_arrays.cuh).
  wait_for_dependency();
  const int token = blockIdx.x * Config::kThreads + threadIdx.x;
  if (token >= actual_tokens(m_on_device, m)) return;
  const int position = positions[token] + 1;
  token_ids[token] = sampled[token];
  positions[token] = position;
  step_start[sequences[token]] = position;
}
