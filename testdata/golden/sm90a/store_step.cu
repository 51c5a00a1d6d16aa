#line 4 "templates/store_step/kernel.cu"
// Generated from templates/store_step for sm90a. Do not edit.
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
#line 1 "templates/lib/words.cuh"
// Machine words and the small arithmetic of every kernel: names that NVRTC does not bring along without headers.

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

// The bits of a BF16 value.
using bf16 = uint16_t;

__device__ __forceinline__ float float_of(bf16 value) { return __uint_as_float(uint32_t{value} << 16); }

// Address of shared memory as the 32-bit number that PTX takes.
__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__host__ __device__ constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_divide(a, b) * b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
#line 19 "templates/store_step/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 20 "templates/store_step/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 21 "templates/store_step/kernel.cu"
#line 1 "templates/lib/step_rows.cuh"
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
#line 22 "templates/store_step/kernel.cu"

struct Config {
  static constexpr int kHeadDim = 512;
  static constexpr int kWindow = 128;
  static constexpr int kStateWidth = 1024;  // columns of c in attention's compressor; 0: it has none
  static constexpr int kStateRows = 8;
  static constexpr int kStateRatio = 4;
  static constexpr int kIndexWidth = 256;  // the same for the indexer's
  static constexpr int kIndexRows = 8;
  static constexpr int kIndexRatio = 4;
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
