$#-
  tile: src/kernels/moe.rs   arch: templates/arch/   (tokens, slots and hidden are run-time arguments)
-#$
// Generated from templates/moe_combine for ${ arch.name }$. Do not edit.
//
// moe_combine: D[t, :] = sum over the local slots s of token t, in ascending order, of parts[t * top_k + s, :].
//
//   operand   shape                   in memory                           written / read
//   parts     [m * top_k, hidden]     f32 or BF16, weight applied         read once
//   experts   [m, top_k]              int32, -1 or foreign: skipped       read
//   D         [m, hidden]             BF16, row-major                     written; zeros where no slot is local
//
//   block = kThreads threads, four columns each; grid = (column blocks, tokens); no shared memory, no barriers
//
// Exactness: f32 sums in slot order, one rounding to BF16. The order is the same whatever the launch.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"

struct Config {
  using Part = ${ problem.part }$;  // element of parts
  static constexpr int kThreads = ${ tile.threads }$;
  static constexpr int kAhead = 6;  // rows of parts on their way at a time
};

// Four columns, which nobody reads again.
__device__ __forceinline__ float4 load_part(const float* from) {
  return __ldcs(reinterpret_cast<const float4*>(from));
}
__device__ __forceinline__ float4 load_part(const bf16* from) {
  const uint2 pairs = __ldcs(reinterpret_cast<const uint2*>(from));
  return make_float4(low_float(pairs.x), high_float(pairs.x), low_float(pairs.y), high_float(pairs.y));
}

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    moe_combine(const Config::Part* parts, const int* experts, bf16* d, const int* m_on_device, int64_t ldd, int m,
                int top_k, int hidden, int expert_offset, int n_local) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.y;
  const int column = (blockIdx.x * Config::kThreads + threadIdx.x) * 4;
  if (token >= actual_tokens(m_on_device, m) || column >= hidden) return;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const int* slots = experts + int64_t{token} * top_k;
  const Config::Part* from = parts + int64_t{token} * top_k * hidden + column;
  for (int first = 0; first < top_k; first += Config::kAhead) {
    // All loads before the first sum: a thread has nothing else to hide their latency behind.
    float4 part[Config::kAhead];
    bool is_local[Config::kAhead];
#pragma unroll
    for (int i = 0; i < Config::kAhead; ++i) {
      const int expert = first + i < top_k ? slots[first + i] - expert_offset : -1;
      is_local[i] = expert >= 0 && expert < n_local;
    }
#pragma unroll
    for (int i = 0; i < Config::kAhead; ++i) {
      if (is_local[i]) part[i] = load_part(from + int64_t{first + i} * hidden);
    }
#pragma unroll
    for (int i = 0; i < Config::kAhead; ++i) {
      if (!is_local[i]) continue;
      sum.x += part[i].x;
      sum.y += part[i].y;
      sum.z += part[i].z;
      sum.w += part[i].w;
    }
  }
  uint32_t* to = reinterpret_cast<uint32_t*>(d + token * ldd + column);
  to[0] = pair_from_floats(sum.x, sum.y);
  to[1] = pair_from_floats(sum.z, sum.w);
}
