// A block an SM goes over the tiles of D, and its ring does not run empty between: what the families of
// dense_persistent share.
//
//   producer  |tile 0 ...      |tile 1 ...      |tile 2     a tile's first stages are there when the results of the
//   consumers    |tile 0 ...   |out|tile 1 ...   |out|      last one are out, and D drains under its products
//
// A grid is built for the tokens of a bucket, and a launch may have fewer: tiles of which no token is there are neither
// copied nor multiplied, but for a block's first, whose weights are on their way before the count is known.
//
// BF16 results leave by sixteen tokens through a little room behind the ring, of which each warp has columns of its
// own, so that warps wait for nobody.
//
// Config gives: Weights, Out, kSwiGlu, kConsumers, kTokens, kBlockK, kStages, kSignal. Stage<Config> and the products
// stand in the header that multiplies (lib/warpgroup_multiply.cuh or lib/warpgroup_multiply_a8.cuh).

constexpr int kStagingTokens = 16;

// Bytes of a consumer's room for results on their way out.
template <class Config>
constexpr int staging_bytes() {
  return kStagingTokens * ((Config::kSwiGlu ? kRowBlock / 2 : kRowBlock) * 2 + 16);
}

// One tile of D.
struct Work {
  int group;
  int first_row;    // in the group
  int first_token;
};

// All tiles; a block takes every gridDim.x-th.
template <class Config>
struct TileList {
  int row_tiles;      // of a group
  int all_row_tiles;
  int token_tiles;
  int is_by_token;    // the tokens of a row tile one after the other; else the rows of a token tile

  __device__ __forceinline__ int end() const { return all_row_tiles * token_tiles; }

  __device__ __forceinline__ Work at(int item) const {
    const int row = is_by_token ? item / token_tiles : item % all_row_tiles;
    const int token = is_by_token ? item % token_tiles : item / all_row_tiles;
    return {row / row_tiles, row % row_tiles * Config::kConsumers * kRowBlock, token * Config::kTokens};
  }

  // The block's next tile behind `item` that has one of the tokens that there are.
  __device__ __forceinline__ int after(int item, int tokens) const {
    do {
      item += gridDim.x;
    } while (item < end() && at(item).first_token >= tokens);
    return item;
  }
};

template <class Config>
__device__ __forceinline__ TileList<Config> list_of_tiles(int m, int row_blocks, int groups, int is_by_token) {
  const int row_tiles = ceil_divide(row_blocks, Config::kConsumers);
  return {row_tiles, groups * row_tiles, ceil_divide(m, Config::kTokens), is_by_token};
}

// What the producer copies from.
template <class Config>
struct Source {
  const uint8_t* weights;
  const TensorMap* a;
  int row_blocks;   // blocks of 64 rows in a group
  int n_slabs;

  __device__ __forceinline__ void copy_weights(const Work& work, int stage_idx, uint32_t stage, uint32_t full) const {
    const PackedMatrix matrix{weights, work.group, row_blocks, n_slabs};
    matrix.copy_stage<Config>(work.first_row, stage_idx * Stage<Config>::kSlabs, stage, full);
  }

  __device__ __forceinline__ void copy_tokens(const Work& work, int stage_idx, uint32_t stage, uint32_t full) const {
    constexpr int kBoxes = Stage<Config>::kTokenBytes / Stage<Config>::kBoxBytes;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const int k = stage_idx * Config::kBlockK + box * (Config::kBlockK / kBoxes);
      copy_box(stage + box * Stage<Config>::kBoxBytes, a, k, work.first_token, work.group, full);
    }
  }
};

// One thread feeds the ring. The weights of the first tile's first stages come before the grid ahead has ended.
template <class Config>
__device__ __forceinline__ void produce(const TileList<Config>& list, const Source<Config>& from,
                                        const int* m_on_device, int m, int n_stages, uint32_t stages,
                                        Ring<Config::kStages> ring) {
  constexpr int kStageBytes = Config::kConsumers * Stage<Config>::kWeightBytes + Stage<Config>::kTokenBytes;
  prefetch_map(from.a);
  const int early = smaller(n_stages, Config::kStages);
  Work work = list.at(blockIdx.x);
  for (int i = 0; i < early; ++i) {
    barrier_arrive_and_expect(ring.full(i), kStageBytes);
    from.copy_weights(work, i, stages + i * Stage<Config>::kBytes, ring.full(i));
  }
  wait_for_dependency();
  RingPosition<Config::kStages> position;
  for (int i = 0; i < early; ++i) {
    from.copy_tokens(work, i, stages + i * Stage<Config>::kBytes, ring.full(i));
    position.advance();
  }
  const int tokens = actual_tokens(m_on_device, m);
  int i = early;
  for (int item = blockIdx.x; item < list.end(); item = list.after(item, tokens)) {
    work = list.at(item);
    for (; i < n_stages; ++i) {
      // A slot is free from the start: the phase before the first one is over.
      barrier_wait(ring.free(position.slot), position.parity ^ 1);
      const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
      barrier_arrive_and_expect(ring.full(position.slot), kStageBytes);
      from.copy_weights(work, i, stage, ring.full(position.slot));
      from.copy_tokens(work, i, stage, ring.full(position.slot));
      position.advance();
    }
    i = 0;
  }
  if constexpr (Config::kSignal != 0) launch_dependents();
}

// Rows of D for the tokens of a tile.
template <class Out>
struct TokenRows {
  Out* d;
  int64_t ldd;
  int count;
  __device__ __forceinline__ Out* row(int token) const { return d + token * ldd; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};

// A warp's rows of sixteen tokens after sixteen. They are stored when the next ones are on their way, so that nobody
// waits for shared memory.
template <class Config, class Store>
__device__ __forceinline__ void store_pairs(const Store& store, const GroupSums<Config>& sums, uint8_t* staging,
                                            int warp, int lane) {
  constexpr int kPieces = Config::kSwiGlu ? 1 : 2;  // of 16 bytes, of a warp's rows of a token
  const bool is_storing = lane < kStagingTokens * kPieces;
  const int own_token = lane / kPieces % kStagingTokens;
  const int piece = warp * kPieces + lane % kPieces;
  const uint4* get = reinterpret_cast<const uint4*>(staging + own_token * Store::kStride + piece * 16);
  const int column = store.first_column() + piece * 8;
  const int n_columns = store.columns();
  uint4 last = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int first = 0; first <= Config::kTokens; first += kStagingTokens) {
    const uint4 values = last;
    if (first < Config::kTokens) {
      __syncwarp();  // the sixteen before these have been read
      store.stage_sixteen(sums + first / 2, staging, 0, warp, lane);
      __syncwarp();
      last = *get;
    }
    const int token = first - kStagingTokens + own_token;
    if (first > 0 && is_storing && token < store.rows.count) {
      Store::store_eight(store.rows.row(token), column, n_columns, values);
    }
  }
}

// A tile of one consumer, in BF16 or f32.
template <class Config, class Store>
__device__ __forceinline__ void store_tile(const Store& store, const GroupSums<Config>& sums, uint8_t* staging,
                                           int warp, int lane) {
  if constexpr (sizeof(typename Config::Out) == 4) {
    store.floats(sums, warp, lane);
  } else {
    store_pairs<Config>(store, sums, staging, warp, lane);
  }
}

// The consumer's rows of a tile, and what multiplies them.
template <class Config>
__device__ __forceinline__ TileStore<Config, TokenRows<typename Config::Out>> store_of_tile(
    typename Config::Out* d, int64_t ldd, const Work& work, const Segments& segments, int tokens, int n, int consumer,
    int warp, int lane, float limit) {
  const int columns = Config::kSwiGlu ? n / 2 : n;
  const int first_row = work.first_row + consumer * kRowBlock;
  const int row = first_row + warp * kRowTile + lane / 4;
  const float alpha_upper = Config::kSwiGlu ? segments.alpha[0] : alpha_of_row(segments, row);
  const float alpha_lower = Config::kSwiGlu ? segments.alpha[1] : alpha_of_row(segments, row + 8);
  const TokenRows<typename Config::Out> rows{d + work.first_token * ldd + int64_t{work.group} * columns, ldd,
                                             tokens - work.first_token};
  return {rows, first_row, n, alpha_upper, alpha_lower, limit};
}
