#line 4 "templates/stream/kernel.cu"
// Generated from templates/stream for sm90a. Do not edit.
//
// stream: reads bytes and does nothing with them: how fast weights can come at all, in a chain of dependent launches.
//
//   operand   shape          in memory     written / read
//   from      [n_pieces]     16 bytes      read once, past L1
//   sink      [1]            uint32        written if all bytes together are one certain value, which they are not
//
//   block = 256 threads, kInFlight loads of 16 bytes on their way in each; grid-stride; no shared memory, no barriers
//
// The reads stand before the wait for the grid ahead, as a kernel's reads of weights may.
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
#line 16 "templates/stream/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 17 "templates/stream/kernel.cu"
#line 1 "templates/arch/sm80/load.cuh"
// Loads of what is read once.

// ld.global.nc.L1::no_allocate.L2::256B: 16 bytes that no other thread will want.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// ld.global.nc.L1::no_allocate: the same for 8, 4 and 2 bytes, which a few lanes share.
__device__ __forceinline__ uint2 load_once(const uint2* from) {
  uint2 value;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from));
  return value;
}
__device__ __forceinline__ uint32_t load_once(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}
__device__ __forceinline__ uint16_t load_once(const uint16_t* from) {
  uint16_t value;
  asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(value) : "l"(from));
  return value;
}
#line 18 "templates/stream/kernel.cu"

constexpr int kInFlight = 8;

extern "C" __global__ void __launch_bounds__(256) stream(const uint4* from, int64_t n_pieces, uint32_t* sink) {
  launch_dependents();
  const int64_t stride = int64_t{gridDim.x} * 256;
  uint32_t all = 0;
  int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  for (; i + (kInFlight - 1) * stride < n_pieces; i += kInFlight * stride) {
    uint4 pieces[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) pieces[j] = load_once(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) all ^= pieces[j].x ^ pieces[j].y ^ pieces[j].z ^ pieces[j].w;
  }
  for (; i < n_pieces; i += stride) {
    const uint4 piece = load_once(from + i);
    all ^= piece.x ^ piece.y ^ piece.z ^ piece.w;
  }
  wait_for_dependency();
  if (all == 0x12345678u) *sink = all;
}
