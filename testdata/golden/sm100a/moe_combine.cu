#line 4 "templates/moe_combine/kernel.cu"
// Generated from templates/moe_combine for sm100a. Do not edit.
//
// moe_combine: D[t, :] = sum over the local slots s of token t, in ascending order, of parts[t * top_k + s, :].
//
//   operand   shape                   in memory                           written / read
//   parts     [m * top_k, hidden]     f32, routing weight applied         read once
//   experts   [m, top_k]              int32, -1 or foreign: skipped       read
//   D         [m, hidden]             BF16, row-major                     written; zeros where no slot is local
//
//   block = kThreads threads, four columns each; grid = (column blocks, tokens); no shared memory, no barriers
//
// Exactness: f32 sums in slot order, one rounding to BF16. The order is the same whatever the launch.
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
#line 17 "templates/moe_combine/kernel.cu"
#line 1 "templates/arch/sm90a/bf16.cuh"
// BF16 arithmetic and conversion, each with one rounding.

// mul.rn.bf16x2: the product of two pairs; subnormal operands are not flushed.
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// cvt.rn.bf16x2.f32: two floats to one pair, `low` in the low half.
__device__ __forceinline__ uint32_t pair_from_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// cvt.rn.bf16.f32: one float to the bits of a BF16.
__device__ __forceinline__ uint16_t bf16_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#line 18 "templates/moe_combine/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids ahead have ended and their writes are visible. Before it a kernel reads
// only what no kernel writes, and writes nothing; every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 19 "templates/moe_combine/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(*m_on_device, m_capacity);
}
#line 20 "templates/moe_combine/kernel.cu"

struct Config {
  static constexpr int kThreads = 256;
  static constexpr int kAhead = 6;  // rows of parts on their way at a time
};

extern "C" __global__ void __launch_bounds__(Config::kThreads)
    moe_combine(const float* parts, const int* experts, bf16* d, const int* m_on_device, int64_t ldd, int m, int top_k,
                int hidden, int expert_offset, int n_local) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.y;
  const int column = (blockIdx.x * Config::kThreads + threadIdx.x) * 4;
  if (token >= actual_tokens(m_on_device, m) || column >= hidden) return;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const int* slots = experts + int64_t{token} * top_k;
  const float* from = parts + int64_t{token} * top_k * hidden + column;
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
      if (is_local[i]) part[i] = __ldcs(reinterpret_cast<const float4*>(from + int64_t{first + i} * hidden));
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
