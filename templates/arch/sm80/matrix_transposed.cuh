// ldmatrix with a transposition on the way: columns of what is stored by rows.

// ldmatrix.x4.trans: four 8x8 matrices of 16-bit values, each transposed; lane i gives the address of row i % 8 of
// matrix i / 8.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&to)[4], uint32_t smem_from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(smem_from)
               : "memory");
}
