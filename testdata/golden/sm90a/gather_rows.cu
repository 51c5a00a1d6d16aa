#line 4 "templates/gather_rows/kernel.cu"
// Generated from templates/gather_rows for sm90a. Do not edit.
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
#line 16 "templates/gather_rows/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 17 "templates/gather_rows/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 18 "templates/gather_rows/kernel.cu"

struct Config {
  static constexpr int kHidden = 4096;
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
