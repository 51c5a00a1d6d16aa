// Packed weights into a stage of the ring: runs of slabs, one for each consumer's block of 64 rows, by bulk copies.
//
// A slab beyond k is replaced by the last one: its tokens are zeros, and zero times a finite number is zero, where what
// lies in shared memory by chance might not be finite. So is a block of rows beyond n, whose results nobody stores.
//
// Config gives: Weights (the format), kConsumers, and what Stage<Config> needs, which stands in the header that
// multiplies (lib/warpgroup_multiply.cuh or lib/warpgroup_multiply_a8.cuh).

// One of several matrices [n, k] that lie one behind the other: of a group of heads, or of an expert.
struct PackedMatrix {
  const uint8_t* weights;  // of all of them
  int idx;
  int row_blocks;          // blocks of 64 rows
  int n_slabs;             // along k

  // Slabs `first_slab` and on of the rows from `first_row` on. The bytes are counted in at `barrier`.
  template <class Config>
  __device__ __forceinline__ void copy_stage(int first_row, int first_slab, uint32_t stage, uint32_t barrier) const {
    constexpr int kSlabs = Stage<Config>::kSlabs;
    constexpr int kSlabBytes = Slab<typename Config::Weights>::kBytes;
#pragma unroll
    for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
      const int row_block = smaller(first_row / kRowBlock + consumer, row_blocks - 1);
      const uint8_t* block = weights + (int64_t{idx} * row_blocks + row_block) * n_slabs * kSlabBytes;
      const uint32_t to = stage + Stage<Config>::kWeightOffset + consumer * Stage<Config>::kWeightBytes;
      if (first_slab + kSlabs <= n_slabs) {
        copy_bulk(to, block + int64_t{first_slab} * kSlabBytes, kSlabs * kSlabBytes, barrier);
      } else {
        for (int s = 0; s < kSlabs; ++s) {
          const int slab = smaller(first_slab + s, n_slabs - 1);
          copy_bulk(to + s * kSlabBytes, block + int64_t{slab} * kSlabBytes, kSlabBytes, barrier);
        }
      }
    }
  }
};
