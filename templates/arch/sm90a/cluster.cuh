// Thread-block clusters: blocks that start together and reach each other's shared memory and barriers.

// %cluster_ctarank: which block of the cluster this one is.
__device__ __forceinline__ uint32_t rank_in_cluster() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// barrier.cluster.arrive: this thread has come; all threads of a warp together.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// barrier.cluster.wait: until every thread of every block of the cluster has come.
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// mapa: where `smem_address` of this block lies in block `rank` of the cluster.
__device__ __forceinline__ uint32_t address_in_block(uint32_t smem_address, uint32_t rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(smem_address), "r"(rank));
  return address;
}

// st.shared::cluster: 16 bytes to the shared memory of any block of the cluster.
__device__ __forceinline__ void store_in_cluster(uint32_t smem_to, float4 value) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(smem_to), "f"(value.x), "f"(value.y),
               "f"(value.z), "f"(value.w)
               : "memory");
}

// mbarrier.arrive at a barrier of any block of the cluster. It says that this thread has read what it was to read; with
// release.cluster, which would publish writes too, a memory barrier of the whole GPU stands before each arrival.
__device__ __forceinline__ void barrier_arrive_in_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// cp.async.bulk.tensor.3d with multicast: one box to the same place in every block of `blocks`, a bit each; each of
// them counts the bytes at its own barrier.
__device__ __forceinline__ void copy_box_to_blocks(uint32_t smem_to, const void* map, int x, int y, int z,
                                                   uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(smem_to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "h"(blocks)
      : "memory");
}
