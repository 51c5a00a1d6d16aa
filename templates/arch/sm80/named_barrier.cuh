// Barriers of some of a block's warps.

// bar.sync: joins the `threads` threads that call it with this `barrier` (1 to 15; __syncthreads is barrier 0).
__device__ __forceinline__ void join_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// bar.arrive: counts towards what bar.sync of other threads waits for, and goes on.
__device__ __forceinline__ void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
