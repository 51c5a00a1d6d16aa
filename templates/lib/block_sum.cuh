// Adds what the warps of a block have summed, in ascending order of k, and hands each result to `store`.
//
// With kSplitK blocks to a tile every block writes its part to `partials`, and the last one to arrive adds all parts,
// its own included, in ascending order of k: the bits do not depend on who came last. Its ticket is reset for the next
// launch, so nothing needs to be cleared between launches.
//
// With kCluster blocks to a tile nothing goes through memory: token t belongs to block t % kCluster, each block sends
// its part of it there, and when all have met each block adds the parts of its tokens in ascending order of k.
//
// Config gives: kRowTiles, kTokens, kWarps, kSplitK, kCluster.

template <class Config>
struct BlockSum {
  static constexpr int kRows = Config::kRowTiles * kRowTile;
  static constexpr int kThreads = Config::kWarps * 32;
  static constexpr int kTokenTiles = ceil_divide(Config::kTokens, 8);
  static constexpr int kStride = kRows + 4;  // 4 more: the 8 rows and 4 token pairs of a fragment meet no bank twice
  static constexpr int kWarpFloats = kTokenTiles * 8 * kStride;
  static constexpr int kBytes = Config::kWarps * kWarpFloats * 4;

  float* parts;

  // Puts the sums of one warp where all threads can read them. The caller synchronises before and after.
  __device__ __forceinline__ void put(const WarpSums<Config>& sums, int warp, int lane) {
    float* part = parts + warp * kWarpFloats + lane / 4;
#pragma unroll
    for (int tile = 0; tile < Config::kRowTiles; ++tile) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        float* at = part + (t * 8 + lane % 4 * 2) * kStride + tile * kRowTile;
        at[0] = sums[tile][t][0];
        at[kStride] = sums[tile][t][1];
        at[8] = sums[tile][t][2];
        at[kStride + 8] = sums[tile][t][3];
      }
    }
  }

  // Sum over the warps, which stand in ascending order of k.
  __device__ __forceinline__ float over_warps(int token, int row) const {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Config::kWarps; ++warp) sum += parts[warp * kWarpFloats + token * kStride + row];
    return sum;
  }

  // The same for four rows, `row` % 4 == 0.
  __device__ __forceinline__ float4 four_over_warps(int token, int row) const {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < Config::kWarps; ++warp) {
      const float4 more = *reinterpret_cast<const float4*>(parts + warp * kWarpFloats + token * kStride + row);
      sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    return sum;
  }
};

// What a block of a cluster receives: [part][token / kCluster][row] floats.
template <class Config>
struct ClusterSum {
  static constexpr int kTokens = ceil_divide(Config::kTokens, Config::kCluster);  // of a block
  static constexpr int kRows = BlockSum<Config>::kRows;
  static constexpr int kBytes = Config::kCluster == 1 ? 0 : Config::kCluster * kTokens * kRows * 4;
};

// Calls store.each<1>(sum_at, n_tokens, 0), where sum_at(token, row) is the whole sum; only the last of the tile's
// blocks does. `partials` holds [kSplitK][kTokens][kRows] floats for this tile; `split` is this block's place along k.
template <class Config, class Store>
__device__ __forceinline__ void sum_block(const WarpSums<Config>& sums, uint8_t* shared, float* partials,
                                          unsigned* ticket, int split, int n_tokens, Store store) {
  using Sum = BlockSum<Config>;
  constexpr int kOutputs = Config::kTokens * Sum::kRows;
  __shared__ unsigned is_last;
  Sum block{reinterpret_cast<float*>(shared)};
  __syncthreads();  // every warp is done with its ring, which the sums now overwrite
  block.put(sums, threadIdx.x / 32, threadIdx.x % 32);
  __syncthreads();
  if constexpr (Config::kSplitK > 1) {
    for (int o = threadIdx.x; o < kOutputs; o += Sum::kThreads) {
      partials[split * kOutputs + o] = block.over_warps(o / Sum::kRows, o % Sum::kRows);
    }
    const auto join = [] { __syncthreads(); };
    if (!is_last_arrival(ticket, Config::kSplitK, &is_last, threadIdx.x == 0, join)) return;
  }
  const auto sum_at = [&](int token, int row) {
    if constexpr (Config::kSplitK == 1) return block.over_warps(token, row);
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < Config::kSplitK; ++part) {
      sum += __ldcg(partials + part * kOutputs + token * Sum::kRows + row);
    }
    return sum;
  };
  store.template each<1>(sum_at, n_tokens, 0);
}

// The same for the blocks of a cluster, each of which stores the tokens that are its own. Nothing else
// uses the memory behind `received`. Every block has arrived at the cluster's barrier once, at its very beginning.
template <class Config, class Store>
__device__ __forceinline__ void sum_cluster(const WarpSums<Config>& sums, uint8_t* shared, float* received, int rank,
                                            int n_tokens, Store store) {
  using Sum = BlockSum<Config>;
  using Received = ClusterSum<Config>;
  constexpr int kQuads = Sum::kRows / 4;
  Sum block{reinterpret_cast<float*>(shared)};
  __syncthreads();  // every warp is done with its ring, which the sums now overwrite
  block.put(sums, threadIdx.x / 32, threadIdx.x % 32);
  __syncthreads();
  cluster_wait();  // all blocks have begun
  for (int o = threadIdx.x; o < Config::kTokens * kQuads; o += Sum::kThreads) {
    const int token = o / kQuads;
    const int row = o % kQuads * 4;
    const int place = (rank * Received::kTokens + token / Config::kCluster) * Sum::kRows + row;
    const uint32_t to = address_in_block(smem_address(received + place), token % Config::kCluster);
    store_in_cluster(to, block.four_over_warps(token, row));
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // all parts have come; from here on no block touches another's memory
  const auto sum_at = [&](int token, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < Config::kCluster; ++part) {
      sum += received[(part * Received::kTokens + token / Config::kCluster) * Sum::kRows + row];
    }
    return sum;
  };
  store.template each<Config::kCluster>(sum_at, n_tokens, rank);
}
