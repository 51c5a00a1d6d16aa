// From the registers of a warpgroup to memory: sums over parts of k, alpha, SwiGLU, one rounding, only inside N and M.
//
// A fragment pairs tokens, memory wants rows together: BF16 results are transposed 8 x 8 by stmatrix into shared memory
// (the ring, when it is free by then, or a little room of their own) and leave it as 16-byte pieces of a token's row.
// f32 results go straight out, eight lanes writing the 32 bytes of a sector, or with a little room for each warp as
// 16-byte pieces too.
//
// Config gives: kTokens, kConsumers, kSwiGlu; kSplitK or kCluster where blocks share a tile.

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

// A block's own tokens, where the blocks of a cluster share a tile: each stores a run of them, for all rows.
template <class Config>
struct OwnTokens : Config {
  static constexpr int kTokens = Config::kTokens / Config::kCluster;
  static_assert(Config::kTokens % (16 * Config::kCluster) == 0, "results leave by sixteen tokens");
  static constexpr int kReceivedBytes = Config::kTokens / 8 * Config::kConsumers * 128 * 16;
};

// Adds the parts of the kCluster blocks that share a tile, in ascending order of k, for this block's own tokens. They
// pass through `received`, which every thread of the block has read for the last time: the ring.
template <class Config>
__device__ __forceinline__ void sum_in_cluster(GroupSums<OwnTokens<Config>>& own, const GroupSums<Config>& sums,
                                               uint8_t* received, int rank, int thread) {
  constexpr int kThreads = Config::kConsumers * 128;
  constexpr int kPieces = OwnTokens<Config>::kTokens / 8;
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // nobody needs its ring any more
  const uint32_t mine = smem_address(received) + (rank * kPieces * kThreads + thread) * 16;
#pragma unroll
  for (int block = 0; block < Config::kCluster; ++block) {
    const uint32_t to = address_in_block(mine, block);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float* piece = sums + 4 * (block * kPieces + i);
      store_in_cluster(to + i * kThreads * 16, make_float4(piece[0], piece[1], piece[2], piece[3]));
    }
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // all parts have come; from here on no block touches another's memory
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) own[i] = 0.0f;
  const float4* from = reinterpret_cast<const float4*>(received) + thread;
#pragma unroll 1
  for (int part = 0; part < Config::kCluster; ++part, from += kPieces * kThreads) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float4 more = from[i * kThreads];
      own[4 * i] += more.x;
      own[4 * i + 1] += more.y;
      own[4 * i + 2] += more.z;
      own[4 * i + 3] += more.w;
    }
  }
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

  // f32 without SwiGLU, by eights of tokens through `staging`, kWarpFloats of the warp's own: a lane takes four rows of
  // one token.
  // `rows` gives row_of_eight(i, lane) and factor_of_eight(i, lane), those of token 8 i + lane / 4, to all lanes.
  static constexpr int kFloatStride = kRowTile + 4;  // 4 more: four pairs of tokens and eight rows meet no bank twice
  static constexpr int kWarpFloats = 8 * kFloatStride;
  __device__ __forceinline__ void floats_in_eights(const GroupSums<Config>& sums, float* staging, int warp,
                                                   int lane) const {
    float* put = staging + lane % 4 * 2 * kFloatStride + lane / 4;
    const float4* get = reinterpret_cast<const float4*>(staging + lane / 4 * kFloatStride + lane % 4 * 4);
    const int row = first_row + warp * kRowTile + lane % 4 * 4;
    // An eight is stored when the next one is on its way, so that nobody waits for shared memory.
    float4 last = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i <= Config::kTokens / 8; ++i) {
      const float4 values = last;
      if (i < Config::kTokens / 8 && i * 8 < rows.count) {
        __syncwarp();  // the eight before this one has been read
        put[0] = sums[4 * i] * alpha_upper;
        put[kFloatStride] = sums[4 * i + 1] * alpha_upper;
        put[8] = sums[4 * i + 2] * alpha_lower;
        put[kFloatStride + 8] = sums[4 * i + 3] * alpha_lower;
        __syncwarp();
        last = *get;
      }
      if (i > 0) {
        float* to = rows.row_of_eight(i - 1, lane);
        const float factor = rows.factor_of_eight(i - 1, lane);
        if ((i - 1) * 8 + lane / 4 < rows.count) {
          const float4 scaled = make_float4(values.x * factor, values.y * factor, values.z * factor, values.w * factor);
          store_four(to, row, n, scaled);
        }
        if (i * 8 >= rows.count) break;
      }
    }
  }

  // Four f32 of a row, as far as there are columns; in one piece where the address allows it.
  static __device__ __forceinline__ void store_four(float* row, int column, int n_columns, const float4& values) {
    float* to = row + column;
    if (column + 4 <= n_columns && (reinterpret_cast<uint64_t>(to) & 15) == 0) {
      *reinterpret_cast<float4*>(to) = values;
      return;
    }
    const float single[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < n_columns) to[i] = single[i];
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
