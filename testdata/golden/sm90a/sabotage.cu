#line 4 "templates/sabotage/kernel.cu"
// Generated from templates/sabotage for sm90a. Do not edit.
//
// sabotage: misbehaves on purpose, so that a test can see a run survive it.
//   hangs = 0   writes to an address where nothing is
//   hangs = 1   waits for a flag that nobody sets
//
//   operand   shape   in memory   written / read
//   flag      [1]     int32       read until it is set, which it never is
//
//   one block of 32 threads; no shared memory, no barriers
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
#line 15 "templates/sabotage/kernel.cu"

extern "C" __global__ void __launch_bounds__(32) sabotage(volatile int* flag, int hangs) {
  if (hangs == 0) {
    *reinterpret_cast<volatile int*>(0x10) = 1;
  }
  while (*flag == 0) {
  }
}
