// Rows of a block of threads in shared memory, whole, and what E4M3 makes of them where that is asked for.
//
//   [row][k in whole slabs + 8] BF16; the 8 more let ldmatrix meet no bank twice; zeros beyond k
//
// A warp takes 32 pieces of 16 bytes of one row at a time, always the same ones: what it rounds it has staged itself.
// The only barrier in between is for the rows' largest magnitudes, which the warps find together.
//
// Config gives: Weights (the format), kWarps, kMostRows, kTokens, kWalk (one row at a time) and kRounds.

// Largest magnitudes of rows that are rounded. A row's scale makes its largest value 448.
template <class Config>
struct RowScales {
  uint32_t amax[Config::kRounds ? Config::kMostRows : 1];  // bits of floats

  // The caller synchronises before rows are rounded.
  __device__ __forceinline__ void clear() {
    if (Config::kRounds && threadIdx.x < Config::kMostRows) amax[threadIdx.x] = 0;
  }

  __device__ __forceinline__ float of(int row) const {
    if constexpr (!Config::kRounds) return 1.0f;
    return fmaxf(__uint_as_float(amax[row]), 1e-30f) / 448.0f;
  }
};

// Two E4M3 codes to BF16, the low byte in the low half: lifted they are values * 2^-120, subnormal ones too.
__device__ __forceinline__ uint32_t pair_of_e4m3(uint32_t codes) {
  constexpr uint32_t kTwoTo120 = 0x7B807B80u;
  const uint32_t low = (codes & 0x80u) << 8 | (codes & 0x7Fu) << 4;
  const uint32_t high = (codes & 0x8000u) << 16 | (codes & 0x7F00u) << 12;
  return multiply_pairs(low | high, kTwoTo120);
}

template <class Config>
struct StagedRows {
  static constexpr int kBatch = 4;  // pieces that a lane has on their way at once
  bf16* rows;
  int k_staged;
  int k;

  __device__ __forceinline__ uint32_t row_bytes() const { return (k_staged + 8) * 2; }

  // What this lane reads of slab `slab_idx`: of row `row` in a walk, or of the token that it brings for ldmatrix. Below
  // 8 tokens the last one stands in for the rest.
  __device__ __forceinline__ uint32_t own_address(int row, int slab_idx, int lane) const {
    if constexpr (!Config::kWalk) row = smaller(lane % 8, Config::kTokens - 1);
    return smem_address(rows) + row * row_bytes() + slab_idx * Config::Weights::kSlabK * 2 + lane / 8 * 16;
  }

  // A warp's share of a row, and this lane's place in it.
  struct Piece {
    int row;
    int k;
  };

  __device__ __forceinline__ int shares_of_row() const { return ceil_divide(k_staged, 256); }

  __device__ __forceinline__ Piece piece(int share) const {
    const int row = Config::kMostRows == 1 ? 0 : share / shares_of_row();
    return {row, (share - row * shares_of_row()) * 256 + static_cast<int>(threadIdx.x % 32) * 8};
  }

  __device__ __forceinline__ bf16* place(Piece at) const { return rows + at.row * (k_staged + 8) + at.k; }

  // Brings rows as they are. The caller synchronises.
  __device__ __forceinline__ void stage(const bf16* from, int64_t ld, const int* row_idx, int n_rows) const {
    const int n_shares = n_rows * shares_of_row();
    for (int first = threadIdx.x / 32; first < n_shares; first += kBatch * Config::kWarps) {
      uint4 loaded[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const Piece at = piece(first + i * Config::kWarps);
        loaded[i] = make_uint4(0, 0, 0, 0);
        if (at.row < n_rows && at.k < k) {
          loaded[i] = __ldcg(reinterpret_cast<const uint4*>(from + row_idx[at.row] * ld + at.k));
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const Piece at = piece(first + i * Config::kWarps);
        if (at.row < n_rows && at.k < k_staged) *reinterpret_cast<uint4*>(place(at)) = loaded[i];
      }
    }
  }

  // Puts zeros where a value of the piece is not finite, and counts them if the row is this block's to count.
  __device__ __forceinline__ void clean(float (&values)[8], Piece at, int row, bool is_counted,
                                        unsigned* counters) const {
    uint32_t first_bad = 0, n_bad = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (is_finite(values[i])) continue;
      if (n_bad == 0) first_bad = i;
      ++n_bad;
      values[i] = 0.0f;
    }
    if (n_bad == 0) return;
    store_eight(place(at), values);
    if (!is_counted) return;
    atomicAdd(counters + 1, n_bad);
    // The least place wins: stored as the complement, so that zero stays "none" and a maximum finds it.
    atomicMax(counters + 2, ~(static_cast<uint32_t>(row) * k + at.k + first_bad));
  }

  // Puts E4M3 values under each row's scale in the place of what this thread has staged. All threads of the block take
  // part, and the caller synchronises afterwards.
  __device__ __forceinline__ void round(const int* row_idx, const bool* is_counted, int n_rows,
                                        RowScales<Config>& scales, unsigned* counters) const {
    const int n_shares = n_rows * shares_of_row();
    for (int share = threadIdx.x / 32; share < n_shares; share += Config::kWarps) {
      const Piece at = piece(share);
      float amax = 0.0f;
      if (at.k < k) {
        float values[8];
        load_eight(values, place(at));
        clean(values, at, row_idx[at.row], is_counted[at.row], counters);
#pragma unroll
        for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(values[i]));
      }
      const uint32_t largest = __reduce_max_sync(~0u, __float_as_uint(amax));
      if (threadIdx.x % 32 == 0) atomicMax(&scales.amax[at.row], largest);
    }
    __syncthreads();
    for (int share = threadIdx.x / 32; share < n_shares; share += Config::kWarps) {
      const Piece at = piece(share);
      if (at.k >= k) continue;
      const float scale = scales.of(at.row);
      float values[8];
      load_eight(values, place(at));
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = pair_of_e4m3(e4m3_pair_from_floats(values[2 * i] / scale, values[2 * i + 1] / scale));
      }
      *reinterpret_cast<uint4*>(place(at)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
};
