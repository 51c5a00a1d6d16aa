// Thread-block clusters: not there before sm_90. A block is alone, and the host offers no tile that would call these.

__device__ __forceinline__ void cluster_arrive() { __trap(); }
__device__ __forceinline__ void cluster_wait() { __trap(); }
__device__ __forceinline__ uint32_t address_in_block(uint32_t smem_address, uint32_t) {
  __trap();
  return smem_address;
}
__device__ __forceinline__ void store_in_cluster(uint32_t, float4) { __trap(); }
