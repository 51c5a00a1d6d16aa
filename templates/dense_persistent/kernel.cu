$#-
  tile: src/kernels/dense_persistent.rs   arch: templates/arch/   (M, N, K, strides and alpha are run-time arguments)
-#$
// Generated from templates/dense_persistent for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// dense_persistent: D[m, g * n + r] = alpha[segment(r)] * sum_k A[m, g * k + k'] * W[g][r, k'], packed weights, BF16
// tokens. dense_wgmma for many tiles: a block an SM goes from tile to tile, and its ring does not run empty between.
//
//   operand  shape               in memory                          read by
//   W        [groups][n, k]      packed slabs (lib/format.cuh)      producer (bulk copy of contiguous slabs)
//   A        [m, groups * k]     BF16, row-major, 16-byte rows      producer (tensor map [k, m, group], 128 B swizzle)
//   D        [m, groups * n]     BF16 or f32, row-major             written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + a producer       ring of kStages stages (lib/warpgroup_multiply.cuh)
//   ---------------------------------------------------------   --------------------------------------------------
//   one thread   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 16 wgmma   -> stage_free[s]
//
//   producer  |tile 0 ...      |tile 1 ...      |tile 2     a tile's first stages are there when the results of the
//   consumers    |tile 0 ...   |out|tile 1 ...   |out|      last one are out, and D drains under its products
//
//   barrier      arrivals              announces
//   stage_full   1 + bytes             weights and tokens of the stage have landed
//   stage_free   4 * kConsumers        each consumer warp's wgmma have read the stage
//   0            all threads           (__syncthreads) the barriers above are ready
//
// Results leave by sixteen tokens through a little room behind the ring, of which each warp has columns of its own, so
// that warps wait for nobody.
//
// Tuned: consumers, tokens, block_k, stages, signal, raster (src/kernels/dense_persistent.rs). Limits: k in whole scale
// groups, A on 16 bytes, lda % 8 == 0; what lies beyond k or m comes as zeros from the tensor map.
// Exactness: operands are exact in BF16; the bits are those of dense_wgmma with k in one part.
// After: PTX ISA "wgmma"; the walk over tiles follows DeepGEMM and CUTLASS's persistent schedulers in idea.
#include "lib/words.cuh"
#include "arch/barrier.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/bulk_copy.cuh"
#include "arch/clamp.cuh"
#include "arch/dependent.cuh"
#include "arch/reciprocal.cuh"
#include "arch/store_matrix.cuh"
#include "arch/wgmma.cuh"
#include "generated/wgmma.cuh"
#include "lib/format.cuh"
#include "lib/reciprocal.cuh"
#include "lib/swiglu.cuh"
#include "lib/bucket.cuh"
#include "lib/epilogue.cuh"
#include "lib/ring.cuh"
#include "lib/warpgroup_multiply.cuh"
#include "lib/last_arrival.cuh"
#include "lib/warpgroup_store.cuh"
#include "lib/weight_stage.cuh"

struct Config {
  using Weights = ${ problem.weights }$;                    // format of W
  using Out = ${ problem.out }$;                            // element of D
  static constexpr bool kSwiGlu = ${ problem.swiglu }$;     // rows alternate: 8 gate, 8 up
  static constexpr int kConsumers = ${ tile.consumers }$;   // warpgroups, 64 rows each
  static constexpr int kTokens = ${ tile.tokens }$;         // tokens of a tile
  static constexpr int kBlockK = ${ tile.block_k }$;        // k of a stage
  static constexpr int kStages = ${ tile.stages }$;         // stages in the ring
  static constexpr int kSplitK = 1;
  static constexpr int kSignal = ${ tile.signal }$;         // when the next grid is let go: 0 at once, else at the end
  static constexpr int kThreads = ${ launch.threads }$;     // consumers, then a warpgroup of producers
  static constexpr int kSmemBytes = ${ launch.smem_bytes }$;
};

constexpr int kConsumerThreads = Config::kConsumers * 128;
static_assert(Config::kConsumers == 2 && Config::kThreads == kConsumerThreads + 128,
              "three warpgroups of 168 registers fill an SM");
constexpr int kStagingTokens = 16;
constexpr int kStagingBytes = kStagingTokens * ((Config::kSwiGlu ? kRowBlock / 2 : kRowBlock) * 2 + 16);
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
// Behind the ring: each consumer's room for results on their way out, then the barriers.
constexpr int kBarrierOffset = kRingBytes + Config::kConsumers * kStagingBytes;
static_assert(kBarrierOffset + Ring<Config::kStages>::kBarrierBytes + 16 == Config::kSmemBytes,
              "host and device disagree on shared memory");
static_assert(Config::kTokens % kStagingTokens == 0, "results leave by sixteen tokens");

// One tile of D.
struct Work {
  int group;
  int first_row;    // in the group
  int first_token;
};

// All tiles; a block takes every gridDim.x-th.
struct WorkList {
  int row_tiles;       // of a group
  int all_row_tiles;
  int token_tiles;
  int tokens;          // that there are

  __device__ __forceinline__ int end() const { return all_row_tiles * token_tiles; }

  // By token: the tokens of a row tile one after the other; else the rows of a token tile.
  __device__ __forceinline__ Work at(int item, int is_by_token) const {
    const int row = is_by_token ? item / token_tiles : item % all_row_tiles;
    const int token = is_by_token ? item % token_tiles : item / all_row_tiles;
    return {row / row_tiles, row % row_tiles * Config::kConsumers * kRowBlock, token * Config::kTokens};
  }
};

// What the producer copies from.
struct Source {
  const uint8_t* weights;
  const TensorMap* a;
  int row_blocks;   // blocks of 64 rows in a group
  int n_slabs;
  int is_by_token;

  __device__ __forceinline__ void copy_weights(const Work& work, int stage_idx, uint32_t stage, uint32_t full) const {
    const PackedMatrix matrix{weights, work.group, row_blocks, n_slabs};
    matrix.copy_stage<Config>(work.first_row, stage_idx * Stage<Config>::kSlabs, stage, full);
  }

  __device__ __forceinline__ void copy_tokens(const Work& work, int stage_idx, uint32_t stage, uint32_t full) const {
#pragma unroll
    for (int box = 0; box < Config::kBlockK / 64; ++box) {
      const int k = stage_idx * Config::kBlockK + box * 64;
      copy_box(stage + box * Stage<Config>::kBoxBytes, a, k, work.first_token, work.group, full);
    }
  }
};

// One thread feeds the ring. The weights of the first tile's first stages come before the grid ahead has ended.
__device__ __forceinline__ void produce(const WorkList& list, const Source& from, int n_stages, uint32_t stages,
                                        Ring<Config::kStages> ring) {
  constexpr int kStageBytes = Config::kConsumers * Stage<Config>::kWeightBytes + Stage<Config>::kTokenBytes;
  prefetch_map(from.a);
  const int early = smaller(n_stages, Config::kStages);
  Work work = list.at(blockIdx.x, from.is_by_token);
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
  int i = early;
  for (int item = blockIdx.x; item < list.end(); item += gridDim.x) {
    work = list.at(item, from.is_by_token);
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
struct TokenRows {
  Config::Out* d;
  int64_t ldd;
  int count;
  __device__ __forceinline__ Config::Out* row(int token) const { return d + token * ldd; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};
// BF16: a warp's rows of sixteen tokens after sixteen. They are stored when the next ones are on their way, so that
// nobody waits for shared memory. (A template: f32 results have no such way out.)
template <class Store>
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

template <class Store>
__device__ __forceinline__ void store_tile(const Store& store, const GroupSums<Config>& sums, uint8_t* staging,
                                           int warp, int lane) {
  if constexpr (sizeof(Config::Out) == 4) {
    store.floats(sums, warp, lane);
  } else {
    store_pairs(store, sums, staging, warp, lane);
  }
}

extern "C" __global__ void __launch_bounds__(Config::kThreads, 1)
    dense_persistent(const uint8_t* __restrict__ weights, const __grid_constant__ TensorMap a, Config::Out* d,
                     const int* m_on_device, int64_t ldd, int m, int n, int k, int groups, int is_raster_by_token,
                     float limit, const __grid_constant__ Segments segments) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kBarrierOffset};
  if (threadIdx.x == 0) ring.init(1, 4 * Config::kConsumers);
  __syncthreads();
  const int row_blocks = ceil_divide(n, kRowBlock);
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int n_stages = ceil_divide(n_slabs, Stage<Config>::kSlabs);
  const int row_tiles = ceil_divide(row_blocks, Config::kConsumers);
  const int token_tiles = ceil_divide(m, Config::kTokens);
  WorkList list{row_tiles, groups * row_tiles, token_tiles, 0};
  // A launch may be of fewer tokens than its grid was built for.
  if (int(blockIdx.x) >= list.end()) {
    wait_for_dependency();
    return;
  }

  if (warp >= 4 * Config::kConsumers) {
    give_registers<56>();
    if (warp == 4 * Config::kConsumers && lane == 0) {
      produce(list, {weights, &a, row_blocks, n_slabs, is_raster_by_token}, n_stages, smem_address(shared), ring);
    }
    wait_for_dependency();
    return;
  }

  take_registers<224>();
  const int consumer = warp / 4;
  const int columns = Config::kSwiGlu ? n / 2 : n;
  RingPosition<Config::kStages> position;
  wait_for_dependency();
  list.tokens = actual_tokens(m_on_device, m);
  for (int item = blockIdx.x; item < list.end(); item += gridDim.x) {
    GroupSums<Config> sums = {};
    multiply_run<Config, false, Config::kTokens>(sums, shared, ring, position, n_stages, Config::kTokens, consumer,
                                                 warp % 4, lane);
    const Work work = list.at(item, is_raster_by_token);
    const int first_row = work.first_row + consumer * kRowBlock;
    const int row = first_row + warp % 4 * kRowTile + lane / 4;
    const float alpha_upper = Config::kSwiGlu ? segments.alpha[0] : alpha_of_row(segments, row);
    const float alpha_lower = Config::kSwiGlu ? segments.alpha[1] : alpha_of_row(segments, row + 8);
    const TokenRows rows{d + work.first_token * ldd + int64_t{work.group} * columns, ldd,
                         list.tokens - work.first_token};
    const TileStore<Config, TokenRows> store{rows, first_row, n, alpha_upper, alpha_lower, limit};
    store_tile(store, sums, shared + kRingBytes + consumer * kStagingBytes, warp % 4, lane);
  }
}
