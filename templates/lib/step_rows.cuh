// What later steps need of a step, one token by one block: its key to the window ring of its sequence, c and g + ape to
// the state rings of the compressors. It happens after everything that reads the rings.
//
// Of two positions that share a row of a ring only the later is written, so the order of blocks does not matter.

// A row of c and g to its place in a state ring; a thread moves four columns at a time.
template <int kWidth, int kRows, int kRatio, int kThreads>
__device__ __forceinline__ void store_state(float* state, const float* from, const float* ape, int slot, int position) {
  static_assert(kWidth % 4 == 0, "whole vectors");
  float4* to = reinterpret_cast<float4*>(state + (int64_t{slot} * kRows + position % kRows) * (2 * kWidth));
  const float4* inputs = reinterpret_cast<const float4*>(from);
  const float4* biases = reinterpret_cast<const float4*>(ape + position % kRatio * kWidth);
#pragma unroll 4
  for (int i = threadIdx.x; i < kWidth / 4; i += kThreads) {
    const float4 c = inputs[i];
    const float4 g = inputs[kWidth / 4 + i];
    const float4 bias = biases[i];
    to[i] = c;
    to[kWidth / 4 + i] = make_float4(g.x + bias.x, g.y + bias.y, g.z + bias.z, g.w + bias.w);
  }
}

// Where the rows of a step lie, and the rings that they go to. `Rings` has the sizes.
struct StepRows {
  const bf16* kv_step;
  bf16* kv_ring;
  const float* cg;
  const float* ape;
  float* state;
  const float* index_cg;
  const float* index_ape;
  float* index_state;
  int64_t ld_cg;
  int64_t ld_index_cg;

  // Called by kThreads threads. The slot and position of `token` are its own.
  template <class Rings, int kThreads>
  __device__ __forceinline__ void store(const int* sequences, int token, int n_tokens, int slot, int position) const {
    // Tokens of a sequence are neighbours: the row is overwritten if the one `rows` further is still of the sequence.
    const auto is_last = [&](int rows) { return token + rows >= n_tokens || sequences[token + rows] != slot; };
    if (is_last(Rings::kWindow)) {
      const uint4* from = reinterpret_cast<const uint4*>(kv_step + int64_t{token} * Rings::kHeadDim);
      const int64_t row = int64_t{slot} * Rings::kWindow + position % Rings::kWindow;
      uint4* to = reinterpret_cast<uint4*>(kv_ring + row * Rings::kHeadDim);
      for (int i = threadIdx.x; i < Rings::kHeadDim / 8; i += kThreads) to[i] = from[i];
    }
    if constexpr (Rings::kStateWidth > 0) {
      if (is_last(Rings::kStateRows)) {
        store_state<Rings::kStateWidth, Rings::kStateRows, Rings::kStateRatio, kThreads>(
            state, cg + token * ld_cg, ape, slot, position);
      }
    }
    if constexpr (Rings::kIndexWidth > 0) {
      if (is_last(Rings::kIndexRows)) {
        store_state<Rings::kIndexWidth, Rings::kIndexRows, Rings::kIndexRatio, kThreads>(
            index_state, index_cg + token * ld_index_cg, index_ape, slot, position);
      }
    }
  }
};
