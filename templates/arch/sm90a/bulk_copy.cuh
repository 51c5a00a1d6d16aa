// The copy engine: whole runs of bytes and boxes of tensors, counted in at an mbarrier.

// What cuTensorMapEncodeTiled fills in on the host.
struct alignas(64) TensorMap {
  uint8_t opaque[128];
};

// cp.async.bulk: `bytes` (a multiple of 16) from global to shared memory; for what is read once.
__device__ __forceinline__ void copy_bulk(uint32_t smem_to, const void* global_from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem_to),
      "l"(global_from), "r"(bytes), "r"(barrier)
      : "memory");
}

// cp.async.bulk.tensor.3d: one box at element coordinates (x, y, z); what lies outside the tensor comes as zeros.
__device__ __forceinline__ void copy_box(uint32_t smem_to, const TensorMap* map, int x, int y, int z,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(smem_to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// prefetch.tensormap: the first box then need not wait for the descriptor.
__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// fence.proxy.async: what threads have written to shared memory is there for the copy engine and the tensor cores.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
