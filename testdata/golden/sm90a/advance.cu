#line 4 "templates/advance/kernel.cu"
// Generated from templates/advance for sm90a. Do not edit.
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
#line 18 "templates/advance/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 19 "templates/advance/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 20 "templates/advance/kernel.cu"

struct Config {
  static constexpr int kThreads = 32;
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
