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
//   H         [slots, k]              BF16, row-major                  producers (tensor map [k, position], swizzled)
//   tiles     [count] int4            expert, position, count, 0       every thread
//   out       H BF16, or parts f32    row-major                        written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + producer warps   work: every tile with every kRows rows, see WorkList
//   ---------------------------------------------------------   ring of kStages stages (lib/warpgroup_multiply.cuh)
//   last warps   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 16 wgmma   -> stage_free[s]
//
//   producer  |tile 0 ...      |tile 1 ...      |tile 2     the ring runs on from one tile to the next: a tile's first
//   consumers    |tile 0 ...   |out|tile 1 ...   |out|      stages are there when the results of the last one are out
//
//   barrier      arrivals                                    announces
//   stage_full   bytes + 1 + kProducers, down 1 a warp       weights and tokens of the stage have landed
//   stage_free   4 * kConsumers                              each consumer warp's wgmma have read the stage
//   1 to 4       128                                         (named) a consumer's warps meet around its staging room
//
// An expert's slots are cut into tiles of nearly equal counts (moe_schedule). A tile of `count` slots is multiplied as
// the next multiple of kStep columns (lib/warpgroup_multiply.cuh). Stages have room for the widest.
//
// Tuned: consumers, tokens, widths, block_k, stages, producers, persistent, signal (src/kernels/moe_wgmma.rs). Weights
// are not fetched before the wait: which expert is needed is what the grid ahead has written.
// Exactness: operands are exact in BF16; H is rounded to BF16 once; parts are f32 and summed in slot order later. A
// column's sum does not depend on the columns beside it, so the width of a tile changes no bits.
// After: gathering with 16-byte copies into the wgmma swizzle follows FlashAttention-3's paged loads in idea.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
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
  static constexpr int kTokens = ${ tile.tokens }$;         // slots of the widest tile
  static constexpr int kStep = ${ tile.step }$;             // widths are multiples of this
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
// Each of the four warp schedulers has a quarter of the registers, so an odd warp costs as much as four: what two
// blocks may take is counted with whole rows of four.
constexpr int kBoundThreads = Config::kBlocksPerSm == 1 ? Config::kThreads : round_up(Config::kThreads, 128);
// A whole warpgroup of producers can give registers to the consumers; one that gathers keeps more of them. Together
// they have what launch bounds give: three warpgroups 168 a thread, four 128.
constexpr bool kMovesRegisters = kProducers == 128 && Config::kConsumers >= 2;
static_assert(!kMovesRegisters || Config::kBlocksPerSm == 1, "three warpgroups of 168 registers fill an SM");
constexpr int kProducerRegisters = Config::kConsumers == 3 || Config::kIsDown ? 56 : 72;
constexpr int kConsumerRegisters = Config::kConsumers == 3 ? 152 : Config::kIsDown ? 224 : 216;
// Behind the ring: each consumer's room for results on their way out, then the barriers.
constexpr int kStagingBytes = 2560;
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
constexpr int kBarrierOffset = kRingBytes + Config::kConsumers * kStagingBytes;
static_assert(kBarrierOffset + Ring<Config::kStages>::kBarrierBytes + 16 == Config::kSmemBytes,
              "host and device disagree on shared memory");
static_assert(Config::kTokens % Config::kStep == 0 && Config::kStep % 16 == 0, "widths are whole pairs of fragments");

// One piece of work but for its rows: kRows of an expert times the slots of a tile.
struct Work {
  int expert;
  int position;   // of the tile's first slot
  int count;      // slots
};

// All pieces of work, the rows of a tile one after the other, so that blocks side by side share its tokens in L2. A
// block takes every gridDim.x-th; without persistence there are as many blocks as there can be pieces.
struct WorkList {
  const int4* tiles;
  int row_groups;  // pieces of a tile
  int end;

  // Beyond the end any will do.
  __device__ __forceinline__ Work at(int item) const {
    const int4 tile = tiles[smaller(item, end - 1) / row_groups];
    return {tile.x, tile.y, tile.z};
  }

  __device__ __forceinline__ int first_row(int item) const { return item % row_groups * kRows; }
};

// The pieces of a block as a warp walks through them: 32 at a time, one a lane, so that only one in 32 is waited for.
struct Pieces {
  const WorkList& list;
  int lane;
  int index;  // of the current piece among the lanes'
  Work of_lane;

  __device__ __forceinline__ Pieces(const WorkList& list, int lane) : list(list), lane(lane), index(0) {
    of_lane = list.at(blockIdx.x + lane * gridDim.x);
  }

  // The current piece, the same in all lanes.
  __device__ __forceinline__ Work current() const {
    return {__shfl_sync(~0u, of_lane.expert, index), __shfl_sync(~0u, of_lane.position, index),
            __shfl_sync(~0u, of_lane.count, index)};
  }

  // Goes on to the next one; `item` is its number.
  __device__ __forceinline__ void advance(int item) {
    index = (index + 1) % 32;
    if (index == 0) of_lane = list.at(item + lane * gridDim.x);
  }
};

// What all pieces have in common along n and k.
struct Extent {
  int row_blocks;  // blocks of 64 rows of an expert
  int n_slabs;
  int n_stages;
  int k_end;
};

// Weights of one stage; slabs beyond k and blocks beyond n are replaced by the last one (see dense_wgmma).
__device__ __forceinline__ void copy_weights(int expert, int first_row, const Extent& extent, const uint8_t* weights,
                                             uint32_t stage, uint32_t barrier, int stage_idx) {
  constexpr int kSlabs = Stage<Config>::kSlabs;
  constexpr int kSlabBytes = Slab<Config::Weights>::kBytes;
  const int first_slab = stage_idx * kSlabs;
#pragma unroll
  for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
    const int row_block = smaller(first_row / kRowBlock + consumer, extent.row_blocks - 1);
    const int64_t block_idx = int64_t{expert} * extent.row_blocks + row_block;
    const uint8_t* block = weights + block_idx * extent.n_slabs * kSlabBytes;
    const uint32_t to = stage + Stage<Config>::kWeightOffset + consumer * Stage<Config>::kWeightBytes;
    if (first_slab + kSlabs <= extent.n_slabs) {
      copy_bulk(to, block + int64_t{first_slab} * kSlabBytes, kSlabs * kSlabBytes, barrier);
    } else {
      for (int s = 0; s < kSlabs; ++s) {
        const int slab = smaller(first_slab + s, extent.n_slabs - 1);
        copy_bulk(to + s * kSlabBytes, block + int64_t{slab} * kSlabBytes, kSlabBytes, barrier);
      }
    }
  }
}

// Rows that one producer thread gathers: piece `thread % 8` of every (kProducers / 8)-th token. Columns beyond the
// count keep whatever the stage held: their products are not stored.
struct GatheredRows {
  static constexpr int kPasses = ceil_divide(Config::kTokens * 8, kProducers);
  static constexpr int kPassTokens = kProducers / 8;
  static_assert(Config::kIsDown || kPassTokens % 8 == 0, "the swizzle is the same in every pass");
  uint32_t at[kPasses];  // slots first, then where the thread's pieces are, in units of 16 bytes

  // Nothing waits for the slots before `resolve`.
  __device__ __forceinline__ void fetch(const Work& work, const int* slot_of, int thread) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = thread / 8 + pass * kPassTokens;
      at[pass] = token < work.count ? slot_of[work.position + token] : 0;
    }
  }

  __device__ __forceinline__ void resolve(int top_k, int64_t ld, int thread) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) at[pass] = at[pass] / top_k * static_cast<uint32_t>(ld / 8) + thread % 8;
  }

  __device__ __forceinline__ void copy(const Work& work, const bf16* from, int k, int k_end, uint32_t stage,
                                       int thread) const {
    constexpr int kBoxes = Config::kBlockK / 64;
    const int row = thread / 8;
    // The 128-byte swizzle of wgmma: piece p of row r stands at place p ^ (r % 8).
    const uint32_t to = stage + row * 128 + ((thread ^ row) % 8 * 16);
    const uint4* box_from[kBoxes];
    int bytes[kBoxes];
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const bool is_there = k + box * 64 + thread % 8 * 8 < k_end;
      box_from[box] = reinterpret_cast<const uint4*>(from + (is_there ? k + box * 64 : 0));
      bytes[box] = is_there ? 16 : 0;
    }
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (row + pass * kPassTokens >= work.count) break;
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        const uint32_t place = to + pass * kPassTokens * 128 + box * Stage<Config>::kBoxBytes;
        copy_async_16_or_zeros(place, box_from[box] + at[pass], bytes[box]);
      }
    }
  }
};

// Gate-up: all producer threads gather, the first also brings the weights. A slot of the ring is free from the start.
__device__ __forceinline__ void produce_gathered(const WorkList& list, const Extent& extent, const uint8_t* weights,
                                                 const bf16* from, int64_t ld, const int* slot_of, int top_k,
                                                 uint32_t stages, Ring<Config::kStages> ring, int thread) {
  RingPosition<Config::kStages> position;
  Pieces pieces(list, thread % 32);
  for (int item = blockIdx.x; item < list.end; item += gridDim.x) {
    const Work work = pieces.current();
    const int first_row = list.first_row(item);
    pieces.advance(item + gridDim.x);
    GatheredRows rows;
    rows.fetch(work, slot_of, thread);
    for (int i = 0; i < extent.n_stages; ++i) {
      barrier_wait(ring.free(position.slot), position.parity ^ 1);
      if (i == 0) rows.resolve(top_k, ld, thread);
      const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
      if (thread == 0) {
        barrier_arrive_and_expect(ring.full(position.slot), Config::kConsumers * Stage<Config>::kWeightBytes);
        copy_weights(work.expert, first_row, extent, weights, stage, ring.full(position.slot), i);
      }
      rows.copy(work, from, i * Config::kBlockK, extent.k_end, stage, thread);
      barrier_arrive_after_copies(ring.full(position.slot));
      position.advance();
    }
  }
  wait_copies<0>();
}

// Down: one thread of each producer warp brings its share of the rows, in boxes of kStep, and the first the weights:
// one thread alone is slower than the copies that it starts. Each arrives in every stage, with or without a share: one
// that did not might miss a turn of the ring and stay behind.
__device__ __forceinline__ void produce_in_order(const WorkList& list, const Extent& extent, const uint8_t* weights,
                                                 const TensorMap* from, uint32_t stages,
                                                 Ring<Config::kStages> ring, int producer) {
  constexpr int kBoxes = Config::kBlockK / 64;
  RingPosition<Config::kStages> position;
  Work next = list.at(blockIdx.x);
  for (int item = blockIdx.x; item < list.end; item += gridDim.x) {
    const Work work = next;
    const int first_row = list.first_row(item);
    next = list.at(item + gridDim.x);
    const int n_parts = ceil_divide(work.count, Config::kStep);
    const int n_own = ceil_divide(n_parts - producer, kProducers / 32);
    const int own_bytes = n_own * (Config::kStep * Config::kBlockK * 2) +
                          (producer == 0 ? Config::kConsumers * Stage<Config>::kWeightBytes : 0);
    for (int i = 0; i < extent.n_stages; ++i) {
      barrier_wait(ring.free(position.slot), position.parity ^ 1);
      const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
      const uint32_t full = ring.full(position.slot);
      barrier_arrive_and_expect(full, own_bytes);
      if (producer == 0) copy_weights(work.expert, first_row, extent, weights, stage, full, i);
      // The swizzle repeats every 1,024 bytes, so boxes laid end to end are one wider box.
      for (int part = producer; part < n_parts; part += kProducers / 32) {
#pragma unroll
        for (int box = 0; box < kBoxes; ++box) {
          copy_box(stage + box * Stage<Config>::kBoxBytes + part * (Config::kStep * 128), from,
                   i * Config::kBlockK + box * 64, work.position + part * Config::kStep, 0, full);
        }
      }
      position.advance();
    }
  }
}

// Where the results go.
struct Results {
  bf16* h;
  float* parts;
  const int* slot_of;
  const float* routing;
  const float* alpha;
  int64_t ld;
  int n;
  float limit;
};

// Rows of H for the positions of a tile.
struct HiddenRows {
  bf16* h;
  int64_t ld;
  int count;
  __device__ __forceinline__ bf16* row(int token) const { return h + token * ld; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};

// Slots of a tile and their routing weights, spread over the lanes of each warp: token t is with lane t % 32.
struct TileSlots {
  static constexpr int kPasses = ceil_divide(Config::kTokens, 32);
  int slot[kPasses];
  float routing[kPasses];

  __device__ __forceinline__ void fetch(const Results& to, const Work& work, int lane) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = pass * 32 + lane;
      slot[pass] = token < work.count ? to.slot_of[work.position + token] : 0;
    }
  }

  __device__ __forceinline__ void fetch_routing(const Results& to) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) routing[pass] = to.routing[slot[pass]];
  }
};

// Rows of parts for the slots of a tile.
struct SlotRows {
  float* parts;
  const TileSlots& slots;
  int64_t ld;
  int count;
  __device__ __forceinline__ float* row_of_eight(int i, int lane) const {
    return parts + __shfl_sync(~0u, slots.slot[i / 4], i % 4 * 8 + lane / 4) * ld;
  }
  __device__ __forceinline__ float factor_of_eight(int i, int lane) const {
    return __shfl_sync(~0u, slots.routing[i / 4], i % 4 * 8 + lane / 4);
  }
};

// One consumer warpgroup.
struct Consumer {
  uint8_t* stages;
  uint8_t* staging;  // kStagingBytes
  Ring<Config::kStages> ring;
  int consumer;
  int warp;          // of the warpgroup
  int lane;

  // Stores a tile of down.
  __device__ __forceinline__ void store(const GroupSums<Config>& sums, const Work& work, const Results& to,
                                        int first_row, float factor, const TileSlots& slots) const {
    const SlotRows rows{to.parts, slots, to.ld, work.count};
    using Store = TileStore<Config, SlotRows>;
    static_assert(4 * Store::kWarpFloats * 4 <= kStagingBytes, "four warps with room of their own");
    const Store store{rows, first_row, to.n, factor, factor, to.limit};
    store.floats_in_eights(sums, reinterpret_cast<float*>(staging) + warp * Store::kWarpFloats, warp, lane);
  }

  // Stores a tile of gate-up.
  __device__ __forceinline__ void store(const GroupSums<Config>& sums, const Work& work, const Results& to,
                                        int first_row, float gate, float up) const {
    const HiddenRows rows{to.h + work.position * to.ld, to.ld, work.count};
    const TileStore<Config, HiddenRows> store{rows, first_row, to.n, gate, up, to.limit};
    store.pairs_in_chunks(sums, staging, warp, lane, [this] { join(); });
  }

  __device__ __forceinline__ void join() const { named_barrier_sync(1 + consumer, 128); }

  // Does all work of the block.
  __device__ __forceinline__ void run(const WorkList& list, const Results& to, int n_stages) const {
    RingPosition<Config::kStages> position;
    Pieces pieces(list, lane);
    TileSlots slots;
    if constexpr (Config::kIsDown) slots.fetch(to, pieces.current(), lane);
    for (int item = blockIdx.x; item < list.end; item += gridDim.x) {
      const Work work = pieces.current();
      // What the end of the tile needs is on its way while it is multiplied.
      if constexpr (Config::kIsDown) slots.fetch_routing(to);
      const float* alpha = to.alpha + work.expert * (Config::kIsDown ? 1 : 2);
      const float alpha_upper = alpha[0];
      const float alpha_lower = alpha[Config::kIsDown ? 0 : 1];
      // The compiler has to see that it is uniform over the warp: wgmma stands behind the branch on it.
      const int width = round_up(__shfl_sync(~0u, work.count, 0), Config::kStep);
      GroupSums<Config> sums = {};
      multiply_run<Config, !Config::kIsDown, Config::kStep>(sums, stages, ring, position, n_stages, width, consumer,
                                                            warp, lane);
      const int first_row = list.first_row(item) + consumer * kRowBlock;
      pieces.advance(item + gridDim.x);
      if constexpr (Config::kIsDown) {
        store(sums, work, to, first_row, alpha_upper, slots);
        slots.fetch(to, pieces.current(), lane);
      } else {
        store(sums, work, to, first_row, alpha_upper, alpha_lower);
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(kBoundThreads, Config::kBlocksPerSm)
    moe_wgmma(const uint8_t* __restrict__ weights, const bf16* x, const __grid_constant__ TensorMap h_map, bf16* h,
              float* parts, const int4* tiles, const int* tile_count, const int* slot_of, const float* routing,
              const float* alpha, int64_t ld_from, int64_t ld_out, int n, int k, int top_k, float limit) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kBarrierOffset};
  if (threadIdx.x == 0) ring.init(Config::kIsDown ? kProducers / 32 : 1 + kProducers, 4 * Config::kConsumers);
  __syncthreads();
  wait_for_dependency();
  const int row_blocks = ceil_divide(n, kRowBlock);
  const int row_groups = ceil_divide(row_blocks, Config::kConsumers);
  const WorkList list{tiles, row_groups, *tile_count * row_groups};
  if (int(blockIdx.x) >= list.end) return;
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const Extent extent{row_blocks, n_slabs, ceil_divide(n_slabs, Stage<Config>::kSlabs), k};

  if (warp >= 4 * Config::kConsumers) {
    if constexpr (kMovesRegisters) give_registers<kProducerRegisters>();
    const int thread = threadIdx.x - kConsumerThreads;
    if constexpr (!Config::kIsDown) {
      produce_gathered(list, extent, weights, x, ld_from, slot_of, top_k, smem_address(shared), ring, thread);
    } else if (lane == 0) {
      produce_in_order(list, extent, weights, &h_map, smem_address(shared), ring, thread / 32);
    }
    if constexpr (Config::kSignal != 0) launch_dependents();
    return;
  }

  if constexpr (kMovesRegisters) take_registers<kConsumerRegisters>();
  const Results to{h, parts, slot_of, routing, alpha, ld_out, n, limit};
  const int consumer = warp / 4;
  const Consumer self{shared, shared + kRingBytes + consumer * kStagingBytes, ring, consumer, warp % 4, lane};
  self.run(list, to, extent.n_stages);
}
