// From the registers of a warpgroup to memory: sums over splits, alpha, SwiGLU, one rounding, only inside N and M.
//
// A fragment pairs tokens, memory wants rows together: BF16 results are transposed 8 x 8 by stmatrix into shared memory
// (the ring, when it is free by then, or a little room of their own) and leave it as 16-byte pieces of a token's row.
// f32 results go straight out: eight lanes write the 32 bytes of a sector.

// Adds the parts of the kSplitK blocks that share a tile, one's own included, in ascending order of k. Returns whether
// this block is the one that stores. `partials` holds [kSplitK][kTokens / 8][thread] float4 for this tile.
template <class Config, class Join>
__device__ __forceinline__ bool sum_splits(GroupSums<Config>& sums, float4* partials, unsigned* ticket, unsigned* flag,
                                           int split, int thread, Join join) {
  constexpr int kThreads = Config::kConsumers * 128;
  constexpr int kPieces = Config::kTokens / 8;
  float4* own = partials + split * kPieces * kThreads + thread;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    own[i * kThreads] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
  }
  if (!is_last_arrival(ticket, Config::kSplitK, flag, thread == 0, join)) return false;
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) sums[i] = 0.0f;
  const float4* from = partials + thread;
#pragma unroll 1
  for (int part = 0; part < Config::kSplitK; ++part, from += kPieces * kThreads) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float4 more = __ldcg(from + i * kThreads);
      sums[4 * i] += more.x;
      sums[4 * i + 1] += more.y;
      sums[4 * i + 2] += more.z;
      sums[4 * i + 3] += more.w;
    }
  }
  return true;
}

// Where a tile goes. `Rows` gives row(token), the address of column 0 for that token; factor(token), what its values
// are multiplied by last; and count, the tokens there are.
template <class Config, class Rows>
struct TileStore {
  static constexpr int kColumns = Config::kSwiGlu ? kRowBlock / 2 : kRowBlock;  // of one consumer
  static constexpr int kStride = kColumns * 2 + 16;  // bytes; 16 more: eight rows of stmatrix meet no bank twice

  Rows rows;
  int first_row;  // of the weight: the consumer's row 0
  int n;
  float alpha_upper;  // of this thread's rows g and g + 8 of its warp's tile
  float alpha_lower;
  float limit;

  __device__ __forceinline__ int first_column() const { return Config::kSwiGlu ? first_row / 2 : first_row; }
  __device__ __forceinline__ int columns() const { return Config::kSwiGlu ? n / 2 : n; }

  // f32: two tokens of two rows for each fragment.
  __device__ __forceinline__ void floats(const GroupSums<Config>& sums, int warp, int lane) const {
    const int row = first_row + warp * kRowTile + lane / 4;
#pragma unroll
    for (int i = 0; i < Config::kTokens / 8; ++i) {
      if (i * 8 >= rows.count) break;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = i * 8 + lane % 4 * 2 + j;
        if (token >= rows.count) continue;
        float* to = rows.row(token);
        const float factor = rows.factor(token);
        if constexpr (Config::kSwiGlu) {
          const float value = swiglu(sums[4 * i + j] * alpha_upper, sums[4 * i + 2 + j] * alpha_lower, limit);
          if (row < n) to[row / 16 * 8 + row % 8] = value * factor;
        } else {
          if (row < n) to[row] = sums[4 * i + j] * alpha_upper * factor;
          if (row + 8 < n) to[row + 8] = sums[4 * i + 2 + j] * alpha_lower * factor;
        }
      }
    }
  }

  // BF16: through `staging`, room for all tokens of this consumer. `join` joins its 128 threads.
  template <class Join>
  __device__ __forceinline__ void pairs(const GroupSums<Config>& sums, uint8_t* staging, int warp, int lane,
                                        Join join) const {
#pragma unroll
    for (int i = 0; i < Config::kTokens / 8; i += 2) stage_sixteen(sums + 4 * i, staging, i * 8, warp, lane);
    join();
    copy_out(staging, 0, Config::kTokens, warp, lane);
  }

  // The same with room for kChunk tokens only, which nobody else uses; two barriers for each chunk.
  static constexpr int kChunk = 32;
  static constexpr int kChunkBytes = kChunk * kStride;
  template <class Join>
  __device__ __forceinline__ void pairs_in_chunks(const GroupSums<Config>& sums, uint8_t* staging, int warp, int lane,
                                                  Join join) const {
#pragma unroll
    for (int first = 0; first < Config::kTokens; first += kChunk) {
      if (first >= rows.count) break;
      join();  // the chunk before this one has been read
#pragma unroll
      for (int token = 0; token < kChunk; token += 16) {
        if (first + token < Config::kTokens) stage_sixteen(sums + (first + token) / 2, staging, token, warp, lane);
      }
      join();
      copy_out(staging, first, smaller(kChunk, Config::kTokens - first), warp, lane);
    }
  }

  // Two fragments, 16 tokens, to rows `token` and on of `staging`. `sums` are the eight of this thread.
  __device__ __forceinline__ void stage_sixteen(const float* sums, uint8_t* staging, int token, int warp,
                                                int lane) const {
    const uint32_t to = smem_address(staging) + (token + lane % 8) * kStride + warp * (kStride - 16) / 4;
    uint32_t pairs[4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* sum = sums + 4 * h;
      if constexpr (Config::kSwiGlu) {
        pairs[h] = pair_from_floats(swiglu(sum[0] * alpha_upper, sum[2] * alpha_lower, limit),
                                    swiglu(sum[1] * alpha_upper, sum[3] * alpha_lower, limit));
      } else {
        pairs[2 * h] = pair_from_floats(sum[0] * alpha_upper, sum[1] * alpha_upper);
        pairs[2 * h + 1] = pair_from_floats(sum[2] * alpha_lower, sum[3] * alpha_lower);
      }
    }
    if constexpr (Config::kSwiGlu) {
      store_matrix_x2_transposed(to + lane / 8 % 2 * 8 * kStride, pairs[0], pairs[1]);
    } else {
      store_matrix_x4_transposed(to + lane / 16 * 8 * kStride + lane / 8 % 2 * 16, pairs);
    }
  }

  // `tokens` staged tokens, of which the first is token `first` of the tile.
  __device__ __forceinline__ void copy_out(const uint8_t* staging, int first, int tokens, int warp, int lane) const {
    constexpr int kPieces = kColumns / 8;
    const int n_columns = columns();
#pragma unroll 1
    for (int piece = warp * 32 + lane; piece < tokens * kPieces; piece += 128) {
      const int token = piece / kPieces;
      if (first + token >= rows.count) break;
      const int column = first_column() + piece % kPieces * 8;
      const uint4 values = *reinterpret_cast<const uint4*>(staging + token * kStride + piece % kPieces * 16);
      store_eight(rows.row(first + token), column, n_columns, values);
    }
  }

  // Eight BF16 of a row, as far as there are columns; in one piece where the address allows it.
  static __device__ __forceinline__ void store_eight(bf16* row, int column, int n_columns, const uint4& values) {
    bf16* to = row + column;
    if (column + 8 <= n_columns && (reinterpret_cast<uint64_t>(to) & 15) == 0) {
      *reinterpret_cast<uint4*>(to) = values;
      return;
    }
    const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i < n_columns) to[i] = static_cast<bf16>(words[i / 2] >> (i % 2 * 16));
    }
  }
};
