// Copies from global to shared memory that run while the thread goes on.

// cp.async.cg.shared.global 16: 16 bytes past L1; the L2 is asked for the 256 bytes around them.
__device__ __forceinline__ void copy_async_16(uint32_t smem_to, const void* global_from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(smem_to), "l"(global_from) : "memory");
}

// The same, reading only `bytes` (0 to 16) and filling the rest with zeros; nothing is read when it is 0.
__device__ __forceinline__ void copy_async_16_or_zeros(uint32_t smem_to, const void* global_from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_to), "l"(global_from), "r"(bytes) : "memory");
}

// cp.async.commit_group: closes the group of all copies since the last one.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group: waits until at most kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
