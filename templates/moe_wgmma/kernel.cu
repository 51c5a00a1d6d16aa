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
//   block = kConsumers warpgroups of 64 rows + producer warps   work: see lib/expert_work.cuh
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
//   0            all threads                                 (__syncthreads) the barriers above are ready
//   1 to 4       128                                         (named) gate-up: a consumer's warps meet around its room
//                                                            for results
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
#include "lib/weight_stage.cuh"
#include "lib/expert_work.cuh"

struct Config {
  using Weights = ${ problem.weights }$;                    // format of W
  using Token = bf16;
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

constexpr int kConsumerThreads = Config::kConsumers * 128;
constexpr int kProducers = Config::kThreads - kConsumerThreads;  // threads
// Each of the four warp schedulers has a quarter of the registers, so an odd warp costs as much as four: what two
// blocks may take is counted with whole rows of four.
constexpr int kBoundThreads = Config::kBlocksPerSm == 1 ? Config::kThreads : round_up(Config::kThreads, 128);
// A whole warpgroup of producers can give registers to the consumers; one that gathers keeps more of them. Together
// they have what launch bounds give: three warpgroups 168 a thread, four 128.
constexpr bool kMovesRegisters = kProducers == 128 && Config::kConsumers >= 2;
static_assert(!kMovesRegisters || Config::kConsumers <= 3, "four consumers and producers have 96 registers each");
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
  __device__ __forceinline__ void run(const WorkList<Config>& list, const Results& to, int n_stages) const {
    RingPosition<Config::kStages> position;
    Pieces<Config> pieces(list, lane);
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
  const WorkList<Config> list{tiles, row_groups, *tile_count * row_groups};
  if (int(blockIdx.x) >= list.end) return;
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const Extent extent{row_blocks, n_slabs, ceil_divide(n_slabs, Stage<Config>::kSlabs), k};

  if (warp >= 4 * Config::kConsumers) {
    if constexpr (kMovesRegisters) give_registers<kProducerRegisters>();
    const int thread = threadIdx.x - kConsumerThreads;
    if constexpr (!Config::kIsDown) {
      produce_gathered<Config>(list, extent, weights, x, ld_from, slot_of, top_k, smem_address(shared), ring, thread);
    } else if (lane == 0) {
      produce_in_order<Config>(list, extent, weights, &h_map, smem_address(shared), ring, thread / 32);
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
