$#-
  tile: src/kernels/moe_wgmma.rs   arch: templates/arch/   (tokens, experts, sizes and strides are run-time arguments)
-#$
// Generated from templates/moe_wgmma for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// moe_wgmma: one of the two grouped GEMMs of a block of experts, on wgmma, from a list of tiles.
//   gate-up   H[p, :] = swiglu(alpha * W13[e] * X[token of p])       rows of X are gathered by the producer's threads
//   down      parts[slot of p, :] = weight * alpha * W2[e] * H[p]    rows of H stand in order: a tensor map brings them
//
//   operand   shape                   in memory                        read by
//   W         [n_local][n, k]         packed slabs (lib/format.cuh)    producer (bulk copy of contiguous slabs)
//   X         [m, k]                  BF16, row-major, 16-byte rows    producer threads (16-byte copies, own swizzle)
//   H         [slots, k]              BF16, row-major                  producer (tensor map [k, position], swizzled)
//   tiles     [count] int4            expert, position, count, 0       every thread
//   out       H BF16, or parts f32    row-major                        written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + producer warps   grid = (row blocks, tiles); others leave at once
//   ---------------------------------------------------------   ring of kStages stages (lib/warpgroup_multiply.cuh)
//   last warps   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 16 wgmma   -> stage_free[s]
//
//   barrier      arrivals                                    announces
//   stage_full   1 + bytes (+ kProducers when gathering)     weights and tokens of the stage have landed
//   stage_free   4 * kConsumers                              each consumer warp's wgmma have read the stage
//
// Tuned: consumers, tokens, block_k, stages, producers, signal (src/kernels/moe_wgmma.rs). Weights are not fetched
// before the wait: which expert is needed is what the grid ahead has written.
// Exactness: operands are exact in BF16; H is rounded to BF16 once; parts are f32 and summed in slot order later.
// After: gathering with 16-byte copies into the wgmma swizzle follows FlashAttention-3's paged loads in idea.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
#include "arch/barrier.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/bulk_copy.cuh"
#include "arch/dependent.cuh"
#include "arch/store_matrix.cuh"
#include "arch/wgmma.cuh"
#include "generated/wgmma.cuh"
#include "lib/format.cuh"
#include "lib/math.cuh"
#include "lib/epilogue.cuh"
#include "lib/ring.cuh"
#include "lib/warpgroup_multiply.cuh"
#include "lib/last_arrival.cuh"
#include "lib/warpgroup_store.cuh"

struct Config {
  using Weights = ${ problem.weights }$;                    // format of W
  static constexpr bool kIsDown = ${ problem.is_down }$;    // down, or gate-up
  static constexpr bool kSwiGlu = !kIsDown;
  static constexpr int kConsumers = ${ tile.consumers }$;   // warpgroups, 64 rows each
  static constexpr int kTokens = ${ tile.tokens }$;         // slots of a block
  static constexpr int kBlockK = ${ tile.block_k }$;        // k of a stage
  static constexpr int kStages = ${ tile.stages }$;         // stages in the ring
  static constexpr int kSplitK = 1;
  static constexpr int kSignal = ${ tile.signal }$;         // when the next grid is let go: 0 at once, else at the end
  static constexpr int kThreads = ${ launch.threads }$;
  static constexpr int kBlocksPerSm = ${ launch.blocks_per_sm }$;
  static constexpr int kSmemBytes = ${ launch.smem_bytes }$;
};

constexpr int kRows = Config::kConsumers * kRowBlock;
constexpr int kConsumerThreads = Config::kConsumers * 128;
constexpr int kProducers = Config::kThreads - kConsumerThreads;  // threads
// A whole warpgroup of producers can give registers to the consumers; one that gathers keeps more of them.
constexpr bool kMovesRegisters = kProducers == 128 && Config::kConsumers == 2;
static_assert(!kMovesRegisters || Config::kBlocksPerSm == 1, "three warpgroups of 168 registers fill an SM");
constexpr int kProducerRegisters = Config::kIsDown ? 40 : 64;
constexpr int kConsumerRegisters = Config::kIsDown ? 232 : 216;
constexpr int kStagingBytes = Config::kTokens * (kRowBlock / 2 * 2 + 16);
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
static_assert(kRingBytes + Ring<Config::kStages>::kBarrierBytes + 16 == Config::kSmemBytes,
              "host and device disagree on shared memory");
static_assert(Config::kConsumers * kStagingBytes <= kRingBytes, "the results are staged where the ring was");

// What one block works on.
struct Work {
  int4 tile;         // expert, position, count
  int row_blocks;    // blocks of 64 rows of an expert
  int first_row;
  int n_slabs;
  int n_stages;
};

// Weights of one stage; slabs beyond k and blocks beyond n are replaced by the last one (see dense_wgmma).
__device__ __forceinline__ void copy_weights(const Work& work, const uint8_t* weights, uint32_t stage, uint32_t barrier,
                                             int stage_idx) {
  constexpr int kSlabs = Stage<Config>::kSlabs;
  constexpr int kSlabBytes = Slab<Config::Weights>::kBytes;
  const int first_slab = stage_idx * kSlabs;
#pragma unroll
  for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
    const int row_block = smaller(work.first_row / kRowBlock + consumer, work.row_blocks - 1);
    const uint8_t* block = weights + (int64_t{work.tile.x} * work.row_blocks + row_block) * work.n_slabs * kSlabBytes;
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

// Rows that one producer thread gathers: piece `thread % 8` of every (kProducers / 8)-th token.
struct GatheredRows {
  static constexpr int kPasses = ceil_divide(Config::kTokens * 8, kProducers);
  int row[kPasses];

  __device__ __forceinline__ void find(const Work& work, const int* slot_of, int top_k, int thread) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = thread / 8 + pass * (kProducers / 8);
      // Beyond the count any row will do: its column of the product is not stored.
      row[pass] = slot_of[work.tile.y + (token < work.tile.z ? token : 0)] / top_k;
    }
  }

  __device__ __forceinline__ void copy(const bf16* from, int64_t ld, int k, int k_end, uint32_t stage,
                                       int thread) const {
    const int piece = thread % 8;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = thread / 8 + pass * (kProducers / 8);
      if (Config::kTokens * 8 % kProducers != 0 && token >= Config::kTokens) break;
      const bf16* row_from = from + row[pass] * ld;
      // The 128-byte swizzle of wgmma: piece p of row r stands at place p ^ (r % 8).
      const uint32_t to = stage + token * 128 + ((piece ^ (token % 8)) * 16);
#pragma unroll
      for (int box = 0; box < Config::kBlockK / 64; ++box) {
        const int column = k + box * 64 + piece * 8;
        const bool is_there = column < k_end;
        const bf16* piece_from = row_from + (is_there ? column : 0);
        copy_async_16_or_zeros(to + box * Stage<Config>::kBoxBytes, piece_from, is_there ? 16 : 0);
      }
    }
  }
};

// Gate-up: all producer threads gather, the first also brings the weights.
__device__ __forceinline__ void produce_gathered(const Work& work, const uint8_t* weights, const bf16* from, int64_t ld,
                                                 const int* slot_of, int top_k, int k_end, uint32_t stages,
                                                 Ring<Config::kStages> ring, int thread) {
  GatheredRows rows;
  rows.find(work, slot_of, top_k, thread);
  RingPosition<Config::kStages> position;
  for (int i = 0; i < work.n_stages; ++i) {
    if (i >= Config::kStages) barrier_wait(ring.free(position.slot), position.parity ^ 1);
    const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
    if (thread == 0) {
      barrier_arrive_and_expect(ring.full(position.slot), Config::kConsumers * Stage<Config>::kWeightBytes);
      copy_weights(work, weights, stage, ring.full(position.slot), i);
    }
    rows.copy(from, ld, i * Config::kBlockK, k_end, stage, thread);
    barrier_arrive_after_copies(ring.full(position.slot));
    position.advance();
  }
  wait_copies<0>();
}

// Down: one thread brings weights and rows.
__device__ __forceinline__ void produce_in_order(const Work& work, const uint8_t* weights, const TensorMap* from,
                                                 uint32_t stages, Ring<Config::kStages> ring) {
  constexpr int kStageBytes = Config::kConsumers * Stage<Config>::kWeightBytes + Stage<Config>::kTokenBytes;
  RingPosition<Config::kStages> position;
  for (int i = 0; i < work.n_stages; ++i) {
    if (i >= Config::kStages) barrier_wait(ring.free(position.slot), position.parity ^ 1);
    const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
    const uint32_t full = ring.full(position.slot);
    barrier_arrive_and_expect(full, kStageBytes);
    copy_weights(work, weights, stage, full, i);
#pragma unroll
    for (int box = 0; box < Config::kBlockK / 64; ++box) {
      copy_box(stage + box * Stage<Config>::kBoxBytes, from, i * Config::kBlockK + box * 64, work.tile.y, 0, full);
    }
    position.advance();
  }
}

// Rows of H for the positions of a tile.
struct HiddenRows {
  bf16* h;
  int64_t ld;
  int count;
  __device__ __forceinline__ bf16* row(int token) const { return h + token * ld; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};

// Rows of parts for the slots of a tile.
struct SlotRows {
  float* parts;
  const int* slot_of;
  const float* routing;
  int64_t ld;
  int count;
  __device__ __forceinline__ float* row(int token) const { return parts + slot_of[token] * ld; }
  __device__ __forceinline__ float factor(int token) const { return routing[slot_of[token]]; }
};

extern "C" __global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    moe_wgmma(const uint8_t* __restrict__ weights, const bf16* x, const __grid_constant__ TensorMap h_map, bf16* h,
              float* parts, const int4* tiles, const int* tile_count, const int* slot_of, const float* routing,
              const float* alpha, int64_t ld_from, int64_t ld_out, int n, int k, int top_k, float limit) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kRingBytes};
  if (threadIdx.x == 0) ring.init(Config::kIsDown ? 1 : 1 + kProducers, 4 * Config::kConsumers);
  __syncthreads();
  wait_for_dependency();
  if (blockIdx.y >= *tile_count) return;
  Work work;
  work.tile = tiles[blockIdx.y];
  work.row_blocks = ceil_divide(n, kRowBlock);
  work.first_row = blockIdx.x * kRows;
  work.n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  work.n_stages = ceil_divide(work.n_slabs, Stage<Config>::kSlabs);

  if (warp >= 4 * Config::kConsumers) {
    if constexpr (kMovesRegisters) give_registers<kProducerRegisters>();
    const int thread = threadIdx.x - kConsumerThreads;
    if constexpr (!Config::kIsDown) {
      produce_gathered(work, weights, x, ld_from, slot_of, top_k, k, smem_address(shared), ring, thread);
    } else if (thread == 0) {
      produce_in_order(work, weights, &h_map, smem_address(shared), ring);
    }
    if constexpr (Config::kSignal != 0) launch_dependents();
    return;
  }

  if constexpr (kMovesRegisters) take_registers<kConsumerRegisters>();
  const int consumer = warp / 4;
  GroupSums<Config> sums = {};
  multiply_stages<Config, !Config::kIsDown>(sums, shared, ring, work.n_stages, consumer, warp % 4, lane);
  const int first_row = work.first_row + consumer * kRowBlock;
  if constexpr (Config::kIsDown) {
    const SlotRows rows{parts, slot_of + work.tile.y, routing, ld_out, work.tile.z};
    const float factor = alpha[work.tile.x];
    const TileStore<Config, SlotRows> store{rows, first_row, n, factor, factor, limit};
    store.floats(sums, warp % 4, lane);
  } else {
    named_barrier_sync(1, kConsumerThreads);  // every stage has been read: the ring may be written over
    const HiddenRows rows{h + work.tile.y * ld_out, ld_out, work.tile.z};
    const float* gate_up = alpha + 2 * work.tile.x;
    const TileStore<Config, HiddenRows> store{rows, first_row, n, gate_up[0], gate_up[1], limit};
    const auto join_group = [consumer] { named_barrier_sync(2 + consumer, 128); };
    store.pairs(sums, shared + consumer * kStagingBytes, warp % 4, lane, join_group);
  }
}
