$#-
  tile: src/kernels/moe_wgmma_a8.rs   arch: templates/arch/   (tokens, experts and sizes are run-time arguments)
-#$
// Generated from templates/moe_wgmma_a8 for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// moe_wgmma_a8: one of the two grouped GEMMs of a block of experts, on the FP8 tensor cores, from a list of tiles.
//   gate-up   H[p, :] = swiglu(alpha * scale[t] * W13[e] * X[t]), t = token of p     rows of X are gathered by threads
//   down      parts[slot of p, :] = weight * alpha * scale[p] * W2[e] * H[p]         a tensor map brings rows of H
//
//   operand   shape                   in memory                                  read by
//   W         [n_local][n, k]         packed slabs (lib/format.cuh)              producer (bulk copy of slabs)
//   X         [m, k]                  E4M3, k of each 16 in the order of         producer threads (16-byte copies, own
//                                     lib/format_a8.cuh (templates/quantise)     swizzle)
//   H         [slots, k]              E4M3, the same; written as BF16 by         producers (tensor map [k, position],
//                                     gate-up and converted in between           swizzled)
//   scale     [m] or [slots]          f32, of a row of X or H                    consumers, after the sum
//   tiles     [count] int4            expert, position, count, 0                 every thread
//   out       H BF16, or parts        row-major; parts f32 or BF16               written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + producer warps   work: lib/expert_work.cuh
//   ---------------------------------------------------------   ring of kStages stages (lib/warpgroup_multiply_a8.cuh)
//   last warps   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 32 wgmma   -> stage_free[s]
//   behind the barriers a table of NVFP4's scales (2 KiB), which all threads make before anything has come
//
//   producer  |tile 0 ...      |tile 1 ...      |tile 2     the ring runs on from one tile to the next: a tile's first
//   consumers    |tile 0 ...   |out|tile 1 ...   |out|      stages are there when the results of the last one are out
//
//   barrier      arrivals                                    announces
//   stage_full   bytes + 1 + kProducers, down 1 a warp       weights and tokens of the stage have landed
//   stage_free   4 * kConsumers                              each consumer warp's wgmma have read the stage
//   0            all threads                                 (__syncthreads) the barriers above and the table are ready
//   1 to 3       128                                         (named) a consumer's warps meet around its staging room
//
// A tile of `count` slots is multiplied as the next multiple of kStep columns. What stands in the columns beyond is
// whatever the stage held, NaN codes perhaps: their sums touch no others and are not stored.
//
// Tuned: consumers, tokens, widths, block_k, stages, producers, persistent, promote, part_bytes, signal
// (src/kernels/moe_wgmma_a8.rs). Limits: k in whole groups of 16; rows of X and H are k bytes apart.
// Exactness: that of dense_wgmma_a8 for both sums; H is rounded to BF16 and then to E4M3 under a scale of its row.
// Parts in BF16 are rounded once more, a twentieth of what FP8 rows cost, and half of what combine reads. A column's
// sum does not depend on the columns beside it, so the width of a tile changes no bits.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
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
#include "lib/epilogue.cuh"
#include "lib/ring.cuh"
#include "lib/warpgroup_multiply_a8.cuh"
#include "lib/last_arrival.cuh"
#include "lib/warpgroup_store.cuh"
#include "lib/weight_stage.cuh"
#include "lib/expert_work.cuh"

struct Config {
  using Weights = ${ problem.weights }$A8;                  // format of W
  using Token = uint8_t;                                    // E4M3
  using Part = ${ problem.part }$;                          // element of parts
  static constexpr bool kIsDown = ${ problem.is_down }$;    // down, or gate-up
  static constexpr bool kSwiGlu = !kIsDown;
  static constexpr int kConsumers = ${ tile.consumers }$;   // warpgroups, 64 rows each
  static constexpr int kTokens = ${ tile.tokens }$;         // slots of the widest tile
  static constexpr int kStep = ${ tile.step }$;             // widths are multiples of this
  static constexpr int kBlockK = ${ tile.block_k }$;        // k of a stage
  static constexpr int kStages = ${ tile.stages }$;         // stages in the ring
  static constexpr int kPromote = ${ tile.promote }$;       // k of a chain of tensor-core sums; 0: all
  static constexpr int kSplitK = 1;
  static constexpr int kCluster = 1;
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
// Behind the ring: each consumer's room for results on their way out, for down's slots with weights, and for scales;
// then the barriers and the table. Nothing is static: the ring begins on 1,024.
constexpr bool kStagesParts = Config::kIsDown && sizeof(Config::Part) == 2;
constexpr int kSlotsOffset = kStagesParts ? 32 * (kRowBlock * 2 + 16) : 0;
constexpr int kScalesOffset = kStagesParts ? kSlotsOffset + 2048 : 2560;
constexpr int kStagingBytes = kScalesOffset + 1024;
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
constexpr int kBarrierOffset = kRingBytes + Config::kConsumers * kStagingBytes;
constexpr int kTableOffset = kBarrierOffset + Ring<Config::kStages>::kBarrierBytes + 16;
constexpr int kTableBytes = Config::Weights::kHasTable ? 256 * 8 : 0;
static_assert(kTableOffset + kTableBytes == Config::kSmemBytes, "host and device disagree on shared memory");
static_assert(kScalesOffset - kSlotsOffset >= (Config::kIsDown ? Config::kTokens * 8 : 32 * 80), "slots, or a chunk");
static_assert(kStagingBytes - kScalesOffset >= Config::kTokens * 4, "a scale for each token");
static_assert(Config::kTokens % Config::kStep == 0 && Config::kStep % 16 == 0, "widths are whole pairs of fragments");

// Where the results go, and what they are multiplied by.
struct Results {
  bf16* h;
  Config::Part* parts;
  const int* slot_of;
  const float* routing;
  const float* row_scales;  // of tokens, or of rows of H
  const float* alpha;
  int64_t ld;
  int n;
  int top_k;
  float limit;
};

// Slots of a tile with their factors, spread over a consumer's threads: slots are fetched while the tile before is
// stored, factors while the tile itself is multiplied; then they are in shared memory.
struct TileSlots {
  static constexpr int kPasses = ceil_divide(Config::kTokens, 128);
  int slot[kPasses];
  float scale[kPasses];
  float routing[kPasses];

  __device__ __forceinline__ void fetch(const Results& to, const Work& work, int thread) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = pass * 128 + thread;
      slot[pass] = token < work.count ? to.slot_of[work.position + token] : 0;
    }
  }

  // Columns beyond the count have some token's scale, or the first row's: they are not stored.
  __device__ __forceinline__ void fetch_factors(const Results& to, const Work& work, int thread) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if constexpr (Config::kIsDown) {
        const int token = pass * 128 + thread;
        routing[pass] = to.routing[slot[pass]];
        scale[pass] = to.row_scales[token < work.count ? work.position + token : 0];
      } else {
        scale[pass] = to.row_scales[slot[pass] / to.top_k];
      }
    }
  }

  __device__ __forceinline__ void store(uint2* slots, float* scales, int thread) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = pass * 128 + thread;
      if (token >= Config::kTokens) break;
      // Parts in BF16 leave as H does, which knows no weights.
      scales[token] = kStagesParts ? scale[pass] * routing[pass] : scale[pass];
      if constexpr (Config::kIsDown) slots[token] = make_uint2(slot[pass], __float_as_uint(routing[pass]));
    }
  }
};

// Rows of parts for the slots of a tile.
struct SlotRows {
  float* parts;
  const uint2* slots;  // slot and bits of its routing weight
  int64_t ld;
  int count;
  __device__ __forceinline__ float* row(int token) const { return parts + slots[token].x * ld; }
  __device__ __forceinline__ float factor(int token) const { return __uint_as_float(slots[token].y); }
};

// Rows of parts in BF16, weight applied.
struct PartRows {
  bf16* parts;
  const uint2* slots;
  int64_t ld;
  int count;
  __device__ __forceinline__ bf16* row(int token) const { return parts + slots[token].x * ld; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};

// Multiplies the sums of the first `count` tokens by their scales.
__device__ __forceinline__ void scale_tokens(GroupSums<Config>& sums, const float* scales, int count, int lane) {
#pragma unroll
  for (int i = 0; i < Config::kTokens / 8; ++i) {
    if (i * 8 >= count) break;
    const float2 scale = *reinterpret_cast<const float2*>(scales + i * 8 + lane % 4 * 2);
    sums[4 * i] *= scale.x;
    sums[4 * i + 1] *= scale.y;
    sums[4 * i + 2] *= scale.x;
    sums[4 * i + 3] *= scale.y;
  }
}

// The next tile is in registers from the beginning of this one; where two blocks share an SM they have none left over,
// and one of them multiplies while the other waits.
constexpr bool kFetchesEarly = Config::kBlocksPerSm == 1;

// One consumer warpgroup.
struct Consumer {
  uint8_t* stages;
  uint8_t* staging;    // kStagingBytes
  const uint2* table;  // of NVFP4's scales
  Ring<Config::kStages> ring;
  int consumer;
  int warp;            // of the warpgroup
  int lane;

  __device__ __forceinline__ void join() const { named_barrier_sync(1 + consumer, 128); }

  // The sums of a tile, begun at zero.
  __device__ __forceinline__ void multiply(GroupSums<Config>& totals, RingPosition<Config::kStages>& position,
                                           int n_stages, int width) const {
    if constexpr (Config::kPromote > 0) {
      GroupSums<Config> sums = {};
      multiply_run<Config, !Config::kIsDown, Config::kStep>(totals, sums, stages, table, ring, position, n_stages,
                                                            width, consumer, lane);
    } else {
      multiply_run<Config, !Config::kIsDown, Config::kStep>(totals, totals, stages, table, ring, position, n_stages,
                                                            width, consumer, lane);
    }
  }

  // Stores a tile of down, whose slots are in the staging room.
  template <class Part>
  __device__ __forceinline__ void store_parts(const GroupSums<Config>& sums, const Work& work, const Results& to,
                                              Part* parts, int first_row, float alpha) const {
    const uint2* slots = reinterpret_cast<const uint2*>(staging + kSlotsOffset);
    if constexpr (sizeof(Part) == 2) {
      const PartRows rows{parts, slots, to.ld, work.count};
      const TileStore<Config, PartRows> store{rows, first_row, to.n, alpha, alpha, to.limit};
      store.pairs_in_chunks(sums, staging, warp, lane, [this] { join(); });
    } else {
      const SlotRows rows{parts, slots, to.ld, work.count};
      const TileStore<Config, SlotRows> store{rows, first_row, to.n, alpha, alpha, to.limit};
      store.floats(sums, warp, lane);
    }
  }

  // Stores a tile. `tile_slots` are its own, and then those of `next`.
  __device__ __forceinline__ void store(GroupSums<Config>& sums, const Work& work, const Work& next, const Results& to,
                                        int first_row, float alpha_upper, float alpha_lower,
                                        TileSlots& tile_slots) const {
    uint2* slots = reinterpret_cast<uint2*>(staging + kSlotsOffset);
    float* scales = reinterpret_cast<float*>(staging + kScalesOffset);
    const int thread = warp * 32 + lane;
    join();  // the tile before this one has been stored
    tile_slots.store(slots, scales, thread);
    join();
    tile_slots.fetch(to, next, thread);
    scale_tokens(sums, scales, work.count, lane);
    if constexpr (Config::kIsDown) {
      store_parts(sums, work, to, to.parts, first_row, alpha_upper);
    } else {
      const HiddenRows rows{to.h + work.position * to.ld, to.ld, work.count};
      const TileStore<Config, HiddenRows> store{rows, first_row, to.n, alpha_upper, alpha_lower, to.limit};
      store.pairs_in_chunks(sums, staging, warp, lane, [this] { join(); });
    }
  }

  // Does all work of the block.
  __device__ __forceinline__ void run(const WorkList<Config>& list, const Results& to, int n_stages) const {
    const int thread = warp * 32 + lane;
    RingPosition<Config::kStages> position;
    Work next = list.at(blockIdx.x);
    TileSlots tile_slots;
    tile_slots.fetch(to, next, thread);
    for (int item = blockIdx.x; item < list.end; item += gridDim.x) {
      const Work work = next;
      if constexpr (kFetchesEarly) next = list.at(item + gridDim.x);
      tile_slots.fetch_factors(to, work, thread);
      const float* alpha = to.alpha + work.expert * (Config::kIsDown ? 1 : 2);
      const float alpha_upper = alpha[0];
      const float alpha_lower = alpha[Config::kIsDown ? 0 : 1];
      // The compiler has to see that it is uniform over the warp: wgmma stands behind the branch on it.
      const int width = round_up(__shfl_sync(~0u, work.count, 0), Config::kStep);
      GroupSums<Config> totals = {};
      multiply(totals, position, n_stages, width);
      if constexpr (!kFetchesEarly) next = list.at(item + gridDim.x);
      const int first_row = list.first_row(item) + consumer * kRowBlock;
      store(totals, work, next, to, first_row, alpha_upper, alpha_lower, tile_slots);
    }
  }
};

extern "C" __global__ void __launch_bounds__(kBoundThreads, Config::kBlocksPerSm)
    moe_wgmma_a8(const uint8_t* __restrict__ weights, const uint8_t* x, const __grid_constant__ TensorMap h_map,
                 bf16* h, Config::Part* parts, const int4* tiles, const int* tile_count, const int* slot_of,
                 const float* routing, const float* row_scales, const float* alpha, int64_t ld_out, int n, int k,
                 int top_k, float limit) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kBarrierOffset};
  uint2* table = reinterpret_cast<uint2*>(shared + kTableOffset);
  if (threadIdx.x == 0) ring.init(Config::kIsDown ? kProducers / 32 : 1 + kProducers, 4 * Config::kConsumers);
  if constexpr (Config::Weights::kHasTable) {
    for (int byte = threadIdx.x; byte < 256; byte += Config::kThreads) table[byte] = table_of_e5m3(byte);
  }
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
      produce_gathered<Config>(list, extent, weights, x, k, slot_of, top_k, smem_address(shared), ring, thread);
    } else if (lane == 0) {
      produce_in_order<Config>(list, extent, weights, &h_map, smem_address(shared), ring, thread / 32);
    }
    if constexpr (Config::kSignal != 0) launch_dependents();
    return;
  }

  if constexpr (kMovesRegisters) take_registers<kConsumerRegisters>();
  const Results to{h, parts, slot_of, routing, row_scales, alpha, ld_out, n, top_k, limit};
  const int consumer = warp / 4;
  uint8_t* staging = shared + kRingBytes + consumer * kStagingBytes;
  const Consumer self{shared, staging, table, ring, consumer, warp % 4, lane};
  self.run(list, to, extent.n_stages);
}
