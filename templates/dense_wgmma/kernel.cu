$#-
  tile: src/kernels/dense_wgmma.rs   arch: templates/arch/   (M, N, K, strides and alpha are run-time arguments)
-#$
// Generated from templates/dense_wgmma for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// dense_wgmma: D[m, g * n + r] = alpha[segment(r)] * sum_k A[m, g * k + k'] * W[g][r, k'], packed weights, BF16 tokens.
// The tensor-core path: wgmma with the weights, decoded in registers, as 64-row operand and the tokens as columns.
//
//   operand  shape               in memory                          read by
//   W        [groups][n, k]      packed slabs (lib/format.cuh)      producer (bulk copy of contiguous slabs)
//   A        [m, groups * k]     BF16, row-major, 16-byte rows      producer (tensor map [k, m, group], 128 B swizzle)
//   D        [m, groups * n]     BF16 or f32, row-major             written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + producer warps   ring of kStages stages (lib/warpgroup_multiply.cuh)
//   ---------------------------------------------------------   --------------------------------------------------
//   one thread   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 16 wgmma   -> stage_free[s]
//
//   producer  |W W W|wait for the grid ahead|A A A|W+A|W+A|      weights of the first kStages stages come early
//   consumer                                  |dec|mma ...|      decode runs under the wgmma before it
//
//   barrier      arrivals              announces
//   stage_full   1 + bytes             weights and tokens of the stage have landed
//   stage_free   4 * kConsumers        each consumer warp's wgmma have read the stage
//   0            all threads           (__syncthreads) the barriers above are ready
//   1            128 * kConsumers      (named) kSplitK: parts are written, the ticket is drawn; BF16 out: the ring has
//                                      been read, results may take its place
//   2 to 5       128                   (named) BF16 out: a consumer's results stand where the ring was
//   cluster      consumers, twice      (kCluster > 1) nobody needs its ring any more; all parts have come
//
// There is one producer warp, or a warpgroup of them where their registers go to the consumers (kMovesRegisters).
//
// kParts blocks may share a tile's k. Their sums meet in memory, where the last to arrive adds them (kSplitK), or in
// shared memory (kCluster): there each block gets all parts of its own share of the tokens, adds and stores them, which
// saves a fence of the whole GPU, an atomic and a second way to the L2.
//
// Tuned: consumers, tokens, block_k, stages, split, cluster, signal, raster (src/kernels/dense_wgmma.rs). Limits: k in
// whole scale groups, A on 16 bytes, lda % 8 == 0; what lies beyond k or m comes as zeros from the tensor map.
// Exactness: operands are exact in BF16; differs from quant's reference only by the order of the f32 sum.
// After: PTX ISA "wgmma"; rows as the register operand follow Humming and CUTLASS example 55; the role split DeepGEMM.
#include "lib/words.cuh"
#include "arch/barrier.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/bulk_copy.cuh"
#include "arch/clamp.cuh"
#include "arch/cluster.cuh"
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

struct Config {
  using Weights = ${ problem.weights }$;                    // format of W
  using Out = ${ problem.out }$;                            // element of D
  static constexpr bool kSwiGlu = ${ problem.swiglu }$;     // rows alternate: 8 gate, 8 up
  static constexpr int kConsumers = ${ tile.consumers }$;   // warpgroups, 64 rows each
  static constexpr int kTokens = ${ tile.tokens }$;         // tokens of a block
  static constexpr int kBlockK = ${ tile.block_k }$;        // k of a stage
  static constexpr int kStages = ${ tile.stages }$;         // stages in the ring
  static constexpr int kSplitK = ${ tile.split }$;          // blocks that share a tile's k through memory
  static constexpr int kCluster = ${ tile.cluster }$;       // blocks that share a tile's k in a cluster
  static constexpr int kSignal = ${ tile.signal }$;         // when the next grid is let go
  static constexpr int kThreads = ${ launch.threads }$;      // consumers, then one producer warp or warpgroup
  static constexpr int kBlocksPerSm = ${ launch.blocks_per_sm }$;
  static constexpr int kSmemBytes = ${ launch.smem_bytes }$;
};

constexpr int kRows = Config::kConsumers * kRowBlock;
constexpr int kConsumerThreads = Config::kConsumers * 128;
constexpr int kParts = Config::kSplitK * Config::kCluster;
static_assert(Config::kSplitK == 1 || Config::kCluster == 1, "parts meet in memory or in a cluster");
// With a whole warpgroup of producers registers can move from them to the consumers, which hold kTokens / 2 sums each.
constexpr bool kMovesRegisters = Config::kThreads == kConsumerThreads + 128;
static_assert(!kMovesRegisters || (Config::kConsumers == 2 && Config::kBlocksPerSm == 1),
              "three warpgroups of 168 registers fill an SM");
static_assert(kMovesRegisters || Config::kThreads == kConsumerThreads + 32, "host and device disagree on the block");
constexpr int kStagingBytes = Config::kTokens * (kRowBlock * 2 + 16);
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
// Behind the ring: its barriers, and the flag of the last arrival. Nothing is static, so that the ring begins on 1,024.
constexpr int kFlagOffset = kRingBytes + Ring<Config::kStages>::kBarrierBytes;
static_assert(kFlagOffset + 16 == Config::kSmemBytes,
              "host and device disagree on shared memory");
static_assert(Config::kConsumers * kStagingBytes <= kRingBytes, "the results are staged where the ring was");
static_assert(Config::kCluster == 1 || Config::kTokens * Config::kConsumers * 256 <= kRingBytes, "and parts received");

// What one block works on.
struct Work {
  int group;
  int row_blocks;   // blocks of 64 rows in a group
  int first_row;    // in the group
  int first_token;
  int n_slabs;
  int first_stage;
  int n_stages;
  int part;         // of k; in a cluster the rank
  int64_t tile;     // index of the output tile
};

__device__ __forceinline__ Work work_of_block(int n, int k, int is_raster_by_token) {
  Work work;
  work.row_blocks = ceil_divide(n, kRowBlock);
  work.n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int row_tiles = ceil_divide(work.row_blocks, Config::kConsumers);
  const int row_idx = (is_raster_by_token ? blockIdx.y : blockIdx.x) / kParts;
  const int token_idx = is_raster_by_token ? blockIdx.x : blockIdx.y;
  work.part = (is_raster_by_token ? blockIdx.y : blockIdx.x) % kParts;
  work.group = row_idx / row_tiles;
  work.first_row = row_idx % row_tiles * kRows;
  work.first_token = token_idx * Config::kTokens;
  const int all_stages = ceil_divide(work.n_slabs, Stage<Config>::kSlabs);
  work.first_stage = int64_t{all_stages} * work.part / kParts;
  work.n_stages = int64_t{all_stages} * (work.part + 1) / kParts - work.first_stage;
  work.tile = int64_t{token_idx} * ((is_raster_by_token ? gridDim.y : gridDim.x) / kParts) + row_idx;
  return work;
}

// Weights of one stage. A slab beyond k is replaced by the last one: its tokens are zeros, and zero times a finite
// number is zero, where what lies in shared memory by chance might not be finite. So is a block of rows beyond n.
__device__ __forceinline__ void copy_weights(const Work& work, const uint8_t* weights, uint32_t stage, uint32_t barrier,
                                             int stage_idx) {
  constexpr int kSlabs = Stage<Config>::kSlabs;
  constexpr int kSlabBytes = Slab<Config::Weights>::kBytes;
  const int first_slab = (work.first_stage + stage_idx) * kSlabs;
#pragma unroll
  for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
    const int row_block = smaller(work.first_row / kRowBlock + consumer, work.row_blocks - 1);
    const uint8_t* block = weights + (int64_t{work.group} * work.row_blocks + row_block) * work.n_slabs * kSlabBytes;
    const uint32_t to = stage + Stage<Config>::kWeightOffset + consumer * Stage<Config>::kWeightBytes;
    if (first_slab + kSlabs <= work.n_slabs) {
      copy_bulk(to, block + int64_t{first_slab} * kSlabBytes, kSlabs * kSlabBytes, barrier);
    } else {
      for (int s = 0; s < kSlabs; ++s) {
        const int slab = smaller(first_slab + s, work.n_slabs - 1);
        copy_bulk(to + s * kSlabBytes, block + int64_t{slab} * kSlabBytes, kSlabBytes, barrier);
      }
    }
  }
}

__device__ __forceinline__ void copy_tokens(const Work& work, const TensorMap* a, uint32_t stage, uint32_t barrier,
                                            int stage_idx) {
#pragma unroll
  for (int box = 0; box < Config::kBlockK / 64; ++box) {
    const int k = (work.first_stage + stage_idx) * Config::kBlockK + box * 64;
    copy_box(stage + box * Stage<Config>::kBoxBytes, a, k, work.first_token, work.group, barrier);
  }
}

// One thread feeds the ring.
__device__ __forceinline__ void produce(const Work& work, const uint8_t* weights, const TensorMap* a, uint32_t stages,
                                        Ring<Config::kStages> ring) {
  constexpr int kStageBytes = Config::kConsumers * Stage<Config>::kWeightBytes + Stage<Config>::kTokenBytes;
  prefetch_map(a);
  const int early = smaller(work.n_stages, Config::kStages);
  for (int i = 0; i < early; ++i) {
    barrier_arrive_and_expect(ring.full(i), kStageBytes);
    copy_weights(work, weights, stages + i * Stage<Config>::kBytes, ring.full(i), i);
  }
  if constexpr (Config::kSignal == 1) launch_dependents();
  wait_for_dependency();
  if constexpr (Config::kSignal == 2) launch_dependents();
  for (int i = 0; i < early; ++i) copy_tokens(work, a, stages + i * Stage<Config>::kBytes, ring.full(i), i);
  RingPosition<Config::kStages> position;
  for (int i = early; i < work.n_stages; ++i) {
    barrier_wait(ring.free(position.slot), position.parity);
    const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
    barrier_arrive_and_expect(ring.full(position.slot), kStageBytes);
    copy_weights(work, weights, stage, ring.full(position.slot), i);
    copy_tokens(work, a, stage, ring.full(position.slot), i);
    position.advance();
  }
  if constexpr (Config::kSignal == 3) launch_dependents();
}

// Rows of D for the tokens of a tile.
struct TokenRows {
  Config::Out* d;
  int64_t ldd;
  int count;
  __device__ __forceinline__ Config::Out* row(int token) const { return d + token * ldd; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};

// alpha of the row, one rounding; BF16 leaves through the ring, which is free by then. `Tokens` is Config, or with a
// share of its tokens.
template <class Tokens>
__device__ __forceinline__ void store_tile(const GroupSums<Tokens>& sums, const Work& work, const TokenRows& rows,
                                           const Segments& segments, uint8_t* ring, int n, float limit) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const int consumer = threadIdx.x / 128;
  const int first_row = work.first_row + consumer * kRowBlock;
  const int row = first_row + warp * kRowTile + lane / 4;
  const float alpha_upper = Config::kSwiGlu ? segments.alpha[0] : alpha_of_row(segments, row);
  const float alpha_lower = Config::kSwiGlu ? segments.alpha[1] : alpha_of_row(segments, row + 8);
  const TileStore<Tokens, TokenRows> store{rows, first_row, n, alpha_upper, alpha_lower, limit};
  if constexpr (sizeof(Config::Out) == 4) {
    store.floats(sums, warp, lane);
  } else {
    named_barrier_sync(1, kConsumerThreads);  // every stage has been read: the ring may be written over
    const auto join_group = [consumer] { named_barrier_sync(2 + consumer, 128); };
    store.pairs(sums, ring + consumer * kStagingBytes, warp, lane, join_group);
  }
}

extern "C" __global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)${ launch.cluster }$
    dense_wgmma(const uint8_t* __restrict__ weights, const __grid_constant__ TensorMap a, Config::Out* d,
                const int* m_on_device, float4* partials, unsigned* tickets, int64_t ldd, int m, int n, int k,
                int is_raster_by_token, float limit, const __grid_constant__ Segments segments) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kRingBytes};
  if (threadIdx.x == 0) ring.init(1, 4 * Config::kConsumers);
  __syncthreads();
  const Work work = work_of_block(n, k, is_raster_by_token);

  if (warp >= 4 * Config::kConsumers) {
    if constexpr (kMovesRegisters) give_registers<40>();
    if (warp == 4 * Config::kConsumers && lane == 0) produce(work, weights, &a, smem_address(shared), ring);
    wait_for_dependency();
    return;
  }

  if constexpr (kMovesRegisters) take_registers<232>();
  const int consumer = warp / 4;
  GroupSums<Config> sums = {};
  multiply_stages<Config, false>(sums, shared, ring, work.n_stages, consumer, warp % 4, lane);
  wait_for_dependency();
  const int columns = Config::kSwiGlu ? n / 2 : n;
  const int tokens = actual_tokens(m_on_device, m) - work.first_token;
  const TokenRows rows{d + work.first_token * ldd + int64_t{work.group} * columns, ldd, tokens};
  if constexpr (Config::kCluster > 1) {
    using Own = OwnTokens<Config>;
    GroupSums<Own> own;
    sum_in_cluster<Config>(own, sums, shared, work.part, threadIdx.x);
    const int first = work.part * Own::kTokens;
    const TokenRows own_rows{rows.d + first * ldd, ldd, tokens - first};
    store_tile<Own>(own, work, own_rows, segments, shared, n, limit);
  } else {
    if constexpr (Config::kSplitK > 1) {
      float4* parts = partials + work.tile * Config::kSplitK * (Config::kTokens / 8) * kConsumerThreads;
      unsigned* is_last = reinterpret_cast<unsigned*>(shared + kFlagOffset);
      const auto join = [] { named_barrier_sync(1, kConsumerThreads); };
      if (!sum_splits<Config>(sums, parts, tickets + work.tile, is_last, work.part, threadIdx.x, join)) return;
    }
    store_tile<Config>(sums, work, rows, segments, shared, n, limit);
  }
}
