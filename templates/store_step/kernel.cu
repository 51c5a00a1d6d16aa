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
// Of two positions that share a row of a ring only the later is written, so the order of blocks does not matter.
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"

struct Config {
  static constexpr int kHeadDim = ${ op.head_dim }$;
  static constexpr int kWindow = ${ op.window }$;
  static constexpr int kWidth = ${ op.width }$;             // columns of c in attention's compressor; 0: it has none
  static constexpr int kRows = ${ op.rows }$;
  static constexpr int kRatio = ${ op.ratio }$;
  static constexpr int kIndexWidth = ${ op.index_width }$;  // the same for the indexer's
  static constexpr int kIndexRows = ${ op.index_rows }$;
  static constexpr int kIndexRatio = ${ op.index_ratio }$;
  static constexpr int kThreads = 256;
};

// A row of c and g to its place in a state ring.
template <int kWidth, int kRows, int kRatio>
__device__ __forceinline__ void store_state(float* state, const float* from, const float* ape, int slot, int position) {
  float* to = state + (int64_t{slot} * kRows + position % kRows) * (2 * kWidth);
  const float* bias = ape + position % kRatio * kWidth;
  for (int i = threadIdx.x; i < kWidth; i += Config::kThreads) {
    to[i] = from[i];
    to[kWidth + i] = from[kWidth + i] + bias[i];
  }
}

extern "C" __global__ void __launch_bounds__(Config::kThreads, 1)
    store_step(const bf16* kv_step, bf16* kv_ring, const float* cg, const float* ape, float* state,
               const float* index_cg, const float* index_ape, float* index_state, const int* positions,
               const int* sequences, const int* m_on_device, int64_t ld_cg, int64_t ld_index_cg, int m) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.x;
  const int n_tokens = actual_tokens(m_on_device, m);
  if (token >= n_tokens) return;
  const int slot = sequences[token];
  const int position = positions[token];
  // Tokens of a sequence are neighbours: the row is overwritten if the one `rows` further is still of the sequence.
  const auto is_last = [&](int rows) { return token + rows >= n_tokens || sequences[token + rows] != slot; };
  if (is_last(Config::kWindow)) {
    const uint4* from = reinterpret_cast<const uint4*>(kv_step + int64_t{token} * Config::kHeadDim);
    const int64_t row = int64_t{slot} * Config::kWindow + position % Config::kWindow;
    uint4* to = reinterpret_cast<uint4*>(kv_ring + row * Config::kHeadDim);
    for (int i = threadIdx.x; i < Config::kHeadDim / 8; i += Config::kThreads) to[i] = from[i];
  }
  if constexpr (Config::kWidth > 0) {
    if (is_last(Config::kRows)) {
      store_state<Config::kWidth, Config::kRows, Config::kRatio>(state, cg + token * ld_cg, ape, slot, position);
    }
  }
  if constexpr (Config::kIndexWidth > 0) {
    if (is_last(Config::kIndexRows)) {
      store_state<Config::kIndexWidth, Config::kIndexRows, Config::kIndexRatio>(
          index_state, index_cg + token * ld_index_cg, index_ape, slot, position);
    }
  }
}
