$#-
  tile: src/kernels/dense_wgmma_a8.rs   arch: templates/arch/   (M, N, K, strides and alpha are run-time arguments)
-#$
// Generated from templates/dense_wgmma_a8 for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// dense_wgmma_a8: D[m, g * n + r] = scale[m] * alpha[segment(r)] * sum_k A[m, g * k + k'] * W[g][r, k'], FP8 tokens.
// The FP8 tensor cores: wgmma with the weights, decoded to E4M3 in registers, as 64-row operand, tokens as columns.
//
//   operand  shape               in memory                              read by
//   W        [groups][n, k]      packed slabs (lib/format.cuh)          producer (bulk copy of contiguous slabs)
//   A        [m, groups * k]     E4M3, row-major, k of each 16 in the   producer (tensor map [k, m, group], 128 B
//                                order of lib/format_a8.cuh             swizzle; each block of a cluster its part)
//   scale    [m]                 f32                                    consumers, after the sum
//   D        [m, groups * n]     BF16 or f32, row-major                 written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + producer warps   ring of kStages stages (lib/warpgroup_multiply_a8.cuh)
//   ---------------------------------------------------------   -----------------------------------------------------
//   one thread   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]; tokens: every block's
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 32 wgmma   -> stage_free[s] of every block
//   behind the barriers a table of NVFP4's scales (2 KiB), which the consumers make before anything has come
//
//   producer  |W W W|wait for the grid ahead|A A A|W+A|W+A|      weights of the first kStages stages come early
//   consumer  |table|                         |dec|mma ...|      decode runs under the wgmma before it
//
//   barrier      arrivals                         announces
//   stage_full   1 + bytes                        weights and tokens of the stage have landed
//   stage_free   4 * kConsumers * kCluster        each consumer warp's wgmma have read the stage
//   0            all threads                      (__syncthreads, kCluster = 1) the barriers above are ready
//   cluster      all threads, first and last      the same in every block; nobody writes to a block that is gone
//   1            128 * kConsumers                 (named) the table is made; kSplitK: parts are written, the ticket is
//                                                 drawn; BF16 out: the ring has been read, results may take its place
//   2 to 3       128                              (named) BF16 out: a consumer's results stand where the ring was
//
// There is one producer warp, or a warpgroup of them where their registers go to the consumers (kMovesRegisters).
//
// A cluster is kCluster blocks of neighbouring rows and the same tokens: each brings its part of the tokens to all of
// them, which divides what the L2 must give. Rows beyond n come as a copy of the last ones and are not stored.
//
// Tuned: consumers, tokens, block_k, stages, split, promote, cluster, signal, raster (src/kernels/dense_wgmma_a8.rs).
// Limits: k in whole groups of 16, A on 16 bytes, lda % 16 == 0; what lies beyond k or m comes as zeros.
// Exactness: MXFP4 and FP8 operands are exact, NVFP4 is rounded to E4M3 (1.5 % of L2 at most); products of E4M3 are
// exact, chains of kPromote k are summed with about 13 bits behind the point, chains in f32. NaN codes stay NaN.
// After: PTX ISA "wgmma"; promotion follows DeepGEMM, the look-up of FP8 products megamoe kernels and CUTLASS.
#include "lib/words.cuh"
#include "arch/barrier.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/bulk_copy.cuh"
#include "arch/bytes.cuh"
#include "arch/clamp.cuh"
#include "arch/cluster.cuh"
#include "arch/dependent.cuh"
#include "arch/fp8.cuh"
#include "arch/reciprocal.cuh"
#include "arch/store_matrix.cuh"
#include "arch/wgmma.cuh"
#include "generated/wgmma_e4m3.cuh"
#include "lib/format.cuh"
#include "lib/format_a8.cuh"
#include "lib/reciprocal.cuh"
#include "lib/swiglu.cuh"
#include "lib/bucket.cuh"
#include "lib/epilogue.cuh"
#include "lib/ring.cuh"
#include "lib/warpgroup_multiply_a8.cuh"
#include "lib/last_arrival.cuh"
#include "lib/warpgroup_store.cuh"
#include "lib/weight_stage.cuh"

struct Config {
  using Weights = ${ problem.weights }$A8;                  // format of W
  using Out = ${ problem.out }$;                            // element of D
  static constexpr bool kSwiGlu = ${ problem.swiglu }$;     // rows alternate: 8 gate, 8 up
  static constexpr int kConsumers = ${ tile.consumers }$;   // warpgroups, 64 rows each
  static constexpr int kTokens = ${ tile.tokens }$;         // tokens of a block
  static constexpr int kBlockK = ${ tile.block_k }$;        // k of a stage
  static constexpr int kStages = ${ tile.stages }$;         // stages in the ring
  static constexpr int kSplitK = ${ tile.split }$;          // blocks that share a tile's k
  static constexpr int kPromote = ${ tile.promote }$;       // k of a chain of tensor-core sums; 0: all
  static constexpr int kCluster = ${ tile.cluster }$;       // blocks that share their tokens
  static constexpr int kSignal = ${ tile.signal }$;         // when the next grid is let go
  static constexpr int kThreads = ${ launch.threads }$;     // consumers, then one producer warp or warpgroup
  static constexpr int kBlocksPerSm = ${ launch.blocks_per_sm }$;
  static constexpr int kSmemBytes = ${ launch.smem_bytes }$;
};

constexpr int kRows = Config::kConsumers * kRowBlock;
constexpr int kConsumerThreads = Config::kConsumers * 128;
// With a whole warpgroup of producers registers can move from them to the consumers, which hold kTokens / 2 sums each,
// twice with promotion.
constexpr bool kMovesRegisters = Config::kThreads == kConsumerThreads + 128;
static_assert(!kMovesRegisters || (Config::kConsumers == 2 && Config::kBlocksPerSm == 1),
              "three warpgroups of 168 registers fill an SM");
static_assert(kMovesRegisters || Config::kThreads == kConsumerThreads + 32, "host and device disagree on the block");
static_assert(Config::kCluster == 1 || Config::kSplitK == 1, "blocks of a cluster work on the same k");
static_assert(Config::kTokens % (8 * Config::kCluster) == 0, "a part of the tokens is whole swizzle atoms of 8 rows");
constexpr int kStagingBytes = Config::kTokens * (kRowBlock * 2 + 16);
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
// Behind the ring: its barriers, the flag of the last arrival, the table. Nothing is static: the ring begins on 1,024.
constexpr int kFlagOffset = kRingBytes + Ring<Config::kStages>::kBarrierBytes;
constexpr int kTableOffset = kFlagOffset + 16;
constexpr int kTableBytes = Config::Weights::kHasTable ? 256 * 8 : 0;
static_assert(kTableOffset + kTableBytes == Config::kSmemBytes, "host and device disagree on shared memory");
static_assert(Config::kConsumers * kStagingBytes <= kRingBytes, "the results are staged where the ring was");

// What one block works on.
struct Work {
  int group;
  int row_blocks;   // blocks of 64 rows in a group
  int first_row;    // in the group
  int first_token;
  int n_slabs;
  int first_stage;
  int n_stages;
  int split;
  int64_t tile;     // index of the output tile

  // Weights of one stage.
  __device__ __forceinline__ void copy_weights(const uint8_t* weights, uint32_t stage, uint32_t barrier,
                                               int stage_idx) const {
    const PackedMatrix matrix{weights, group, row_blocks, n_slabs};
    matrix.copy_stage<Config>(first_row, (first_stage + stage_idx) * Stage<Config>::kSlabs, stage, barrier);
  }
};

__device__ __forceinline__ Work work_of_block(int n, int k, int is_raster_by_token) {
  Work work;
  work.row_blocks = ceil_divide(n, kRowBlock);
  work.n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int row_tiles = round_up(ceil_divide(work.row_blocks, Config::kConsumers), Config::kCluster);
  const int row_idx = (is_raster_by_token ? blockIdx.y : blockIdx.x) / Config::kSplitK;
  const int token_idx = is_raster_by_token ? blockIdx.x : blockIdx.y;
  work.split = (is_raster_by_token ? blockIdx.y : blockIdx.x) % Config::kSplitK;
  work.group = row_idx / row_tiles;
  work.first_row = row_idx % row_tiles * kRows;
  work.first_token = token_idx * Config::kTokens;
  const int all_stages = ceil_divide(work.n_slabs, Stage<Config>::kSlabs);
  work.first_stage = int64_t{all_stages} * work.split / Config::kSplitK;
  work.n_stages = int64_t{all_stages} * (work.split + 1) / Config::kSplitK - work.first_stage;
  work.tile = int64_t{token_idx} * ((is_raster_by_token ? gridDim.y : gridDim.x) / Config::kSplitK) + row_idx;
  return work;
}

// Tokens of one stage: this block's part of them, for every block of the cluster.
__device__ __forceinline__ void copy_tokens(const Work& work, const TensorMap* a, uint32_t stage, uint32_t barrier,
                                            int stage_idx, int part) {
  constexpr int kPart = Config::kTokens / Config::kCluster;
#pragma unroll
  for (int box = 0; box < Config::kBlockK / 128; ++box) {
    const int k = (work.first_stage + stage_idx) * Config::kBlockK + box * 128;
    const uint32_t to = stage + box * Stage<Config>::kBoxBytes + part * kPart * 128;
    if constexpr (Config::kCluster == 1) {
      copy_box(to, a, k, work.first_token, work.group, barrier);
    } else {
      constexpr uint16_t kAll = (1 << Config::kCluster) - 1;
      copy_box_to_blocks(to, a, k, work.first_token + part * kPart, work.group, barrier, kAll);
    }
  }
}

// One thread feeds the ring. The bytes of other blocks may land before this block expects them: the phase cannot end
// without its one arrival.
__device__ __forceinline__ void produce(const Work& work, const uint8_t* weights, const TensorMap* a, uint32_t stages,
                                        Ring<Config::kStages> ring, int part) {
  constexpr int kStageBytes = Config::kConsumers * Stage<Config>::kWeightBytes + Stage<Config>::kTokenBytes;
  prefetch_map(a);
  const int early = smaller(work.n_stages, Config::kStages);
  for (int i = 0; i < early; ++i) {
    barrier_arrive_and_expect(ring.full(i), kStageBytes);
    work.copy_weights(weights, stages + i * Stage<Config>::kBytes, ring.full(i), i);
  }
  if constexpr (Config::kSignal == 1) launch_dependents();
  wait_for_dependency();
  for (int i = 0; i < early; ++i) copy_tokens(work, a, stages + i * Stage<Config>::kBytes, ring.full(i), i, part);
  RingPosition<Config::kStages> position;
  for (int i = early; i < work.n_stages; ++i) {
    barrier_wait(ring.free(position.slot), position.parity);
    const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
    barrier_arrive_and_expect(ring.full(position.slot), kStageBytes);
    work.copy_weights(weights, stage, ring.full(position.slot), i);
    copy_tokens(work, a, stage, ring.full(position.slot), i, part);
    position.advance();
  }
  if constexpr (Config::kSignal == 3) launch_dependents();
}

// Multiplies each token's sums by its scale. Tokens that do not exist get 0 and are not stored.
__device__ __forceinline__ void scale_tokens(GroupSums<Config>& sums, const float* row_scales, int tokens, int lane) {
#pragma unroll
  for (int i = 0; i < Config::kTokens / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = i * 8 + lane % 4 * 2 + j;
      const float scale = token < tokens ? row_scales[token] : 0.0f;
      sums[4 * i + j] *= scale;
      sums[4 * i + 2 + j] *= scale;
    }
  }
}

// Rows of D for the tokens of a tile.
struct TokenRows {
  Config::Out* d;
  int64_t ldd;
  int count;
  __device__ __forceinline__ Config::Out* row(int token) const { return d + token * ldd; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};

// Scale of the token, alpha of the row, one rounding; BF16 leaves through the ring, which is free by then.
__device__ __forceinline__ void store_tile(GroupSums<Config>& sums, const Work& work, const TokenRows& rows,
                                           const Segments& segments, const float* row_scales, uint8_t* ring, int n,
                                           float limit) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const int consumer = threadIdx.x / 128;
  const int first_row = work.first_row + consumer * kRowBlock;
  const int row = first_row + warp * kRowTile + lane / 4;
  const float alpha_upper = Config::kSwiGlu ? segments.alpha[0] : alpha_of_row(segments, row);
  const float alpha_lower = Config::kSwiGlu ? segments.alpha[1] : alpha_of_row(segments, row + 8);
  const TileStore<Config, TokenRows> store{rows, first_row, n, alpha_upper, alpha_lower, limit};
  scale_tokens(sums, row_scales + work.first_token, rows.count, lane);
  if constexpr (sizeof(Config::Out) == 4) {
    store.floats(sums, warp, lane);
  } else {
    named_barrier_sync(1, kConsumerThreads);  // every stage has been read: the ring may be written over
    const auto join_group = [consumer] { named_barrier_sync(2 + consumer, 128); };
    store.pairs(sums, ring + consumer * kStagingBytes, warp, lane, join_group);
  }
}

// The block's first meeting, with the other blocks of the cluster if there are any.
__device__ __forceinline__ void begin_block() {
  if constexpr (Config::kCluster > 1) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
}

// The last: a block must not be gone while others may report to its barriers. It arrives as soon as it has nothing more
// to report, before it stores, because arriving waits for what it has stored.
__device__ __forceinline__ void leave_cluster() {
  if constexpr (Config::kCluster > 1) {
    __syncwarp();
    cluster_arrive();
  }
}
__device__ __forceinline__ void end_block() {
  if constexpr (Config::kCluster > 1) {
    __syncwarp();
    cluster_wait();
  }
}

extern "C" __global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)${ launch.cluster }$
    dense_wgmma_a8(const uint8_t* __restrict__ weights, const __grid_constant__ TensorMap a, const float* row_scales,
                   Config::Out* d, const int* m_on_device, float4* partials, unsigned* tickets, int64_t ldd, int m,
                   int n, int k, int is_raster_by_token, float limit, const __grid_constant__ Segments segments) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kRingBytes};
  if (threadIdx.x == 0) ring.init(1, 4 * Config::kConsumers * Config::kCluster);
  begin_block();
  const Work work = work_of_block(n, k, is_raster_by_token);

  if (warp >= 4 * Config::kConsumers) {
    if constexpr (kMovesRegisters) give_registers<40>();
    if (warp == 4 * Config::kConsumers && lane == 0) {
      const int part = Config::kCluster == 1 ? 0 : rank_in_cluster();
      produce(work, weights, &a, smem_address(shared), ring, part);
    }
    wait_for_dependency();
    leave_cluster();
    end_block();
    return;
  }

  if constexpr (kMovesRegisters) take_registers<232>();
  const int consumer = warp / 4;
  const auto join_consumers = [] { named_barrier_sync(1, kConsumerThreads); };
  uint2* table = reinterpret_cast<uint2*>(shared + kTableOffset);
  if constexpr (Config::Weights::kHasTable) {
    for (int byte = threadIdx.x; byte < 256; byte += kConsumerThreads) table[byte] = table_of_e5m3(byte);
    join_consumers();
  }
  GroupSums<Config> totals = {};
  if constexpr (Config::kPromote > 0) {
    GroupSums<Config> sums = {};
    multiply_stages<Config>(totals, sums, shared, table, ring, work.n_stages, consumer, lane);
  } else {
    multiply_stages<Config>(totals, totals, shared, table, ring, work.n_stages, consumer, lane);
  }
  leave_cluster();
  wait_for_dependency();
  if constexpr (Config::kSplitK > 1) {
    float4* parts = partials + work.tile * Config::kSplitK * (Config::kTokens / 8) * kConsumerThreads;
    unsigned* is_last = reinterpret_cast<unsigned*>(shared + kFlagOffset);
    if (!sum_splits<Config>(totals, parts, tickets + work.tile, is_last, work.split, threadIdx.x, join_consumers)) {
      return;
    }
  }
  const int columns = Config::kSwiGlu ? n / 2 : n;
  const int tokens = actual_tokens(m_on_device, m) - work.first_token;
  const TokenRows rows{d + work.first_token * ldd + int64_t{work.group} * columns, ldd, tokens};
  store_tile(totals, work, rows, segments, row_scales, shared, n, limit);
  end_block();
}
