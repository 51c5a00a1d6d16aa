// Warpgroup MMA: four warps multiply 64 rows held in registers with tokens held in shared memory.
// The instruction itself comes from generated/wgmma.cuh, for the one width that a kernel uses.

// wgmma.fence: registers written so far may be read by the wgmma that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// wgmma.commit_group: closes the group of all wgmma since the last one.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// wgmma.wait_group: waits until at most kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to a register that wgmma uses across this point. No instruction.
__device__ __forceinline__ void pin_register(float& value) { asm volatile("" : "+f"(value)::"memory"); }

// setmaxnreg: a warpgroup gives registers back, or takes them, down or up to kRegisters a thread.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Descriptor of a K-major operand whose rows are 128 bytes, swizzled by 128 bytes: 8 rows make 1,024 bytes.
// Layout: PTX ISA, "matrix descriptor": address / 16 in bits 0-13, stride / 16 in bits 32-45, swizzle in bits 62-63.
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t smem_address) {
  constexpr uint64_t kEightRows = 1024 / 16;
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(smem_address & 0x3FFFF) >> 4} | (uint64_t{1} << 16) | (kEightRows << 32) | (kSwizzle128 << 62);
}
