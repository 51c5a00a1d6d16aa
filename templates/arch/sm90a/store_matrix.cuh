// stmatrix: fragments to shared memory, the way ldmatrix reads them.

// stmatrix.x4.trans: four 8x8 matrices of 16-bit values; lane i gives the address of *column* i % 8 of matrix i / 8.
__device__ __forceinline__ void store_matrix_x4_transposed(uint32_t smem_to, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_to), "r"(from[0]),
               "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// stmatrix.x2.trans: two such matrices; lanes 0 to 15 give the addresses.
__device__ __forceinline__ void store_matrix_x2_transposed(uint32_t smem_to, uint32_t from0, uint32_t from1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(smem_to), "r"(from0), "r"(from1)
               : "memory");
}
