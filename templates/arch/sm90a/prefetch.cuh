// What is not copied yet, brought closer.

// cp.async.bulk.prefetch.L2: `bytes` (a multiple of 16) from memory to the L2; a hint, which nothing waits for.
__device__ __forceinline__ void prefetch_bulk(const void* global_from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global_from), "r"(bytes) : "memory");
}
