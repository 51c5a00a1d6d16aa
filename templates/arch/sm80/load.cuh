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
