$#-
  tile: src/kernels/dense_persistent.rs   arch: templates/arch/   (M, N, K, strides and alpha are run-time arguments)
-#$
// Generated from templates/dense_persistent for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// dense_persistent: D[m, g * n + r] = alpha[segment(r)] * sum_k A[m, g * k + k'] * W[g][r, k'], packed weights, BF16
// tokens. dense_wgmma for many tiles: a block an SM goes from tile to tile (lib/tile_walk.cuh).
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
//   barrier      arrivals              announces
//   stage_full   1 + bytes             weights and tokens of the stage have landed
//   stage_free   4 * kConsumers        each consumer warp's wgmma have read the stage
//   0            all threads           (__syncthreads) the barriers above are ready
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
#include "lib/tile_walk.cuh"

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
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
// Behind the ring: each consumer's room for results on their way out, then the barriers.
constexpr int kBarrierOffset = kRingBytes + Config::kConsumers * staging_bytes<Config>();
static_assert(kBarrierOffset + Ring<Config::kStages>::kBarrierBytes + 16 == Config::kSmemBytes,
              "host and device disagree on shared memory");
static_assert(Config::kTokens % kStagingTokens == 0, "results leave by sixteen tokens");

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
  const TileList<Config> list = list_of_tiles<Config>(m, row_blocks, groups, is_raster_by_token);
  // A launch may be of fewer tokens than its grid was built for.
  if (int(blockIdx.x) >= list.end()) {
    wait_for_dependency();
    return;
  }

  if (warp >= 4 * Config::kConsumers) {
    give_registers<56>();
    if (warp == 4 * Config::kConsumers && lane == 0) {
      const Source<Config> from{weights, &a, row_blocks, n_slabs};
      produce<Config>(list, from, m_on_device, m, n_stages, smem_address(shared), ring);
    }
    wait_for_dependency();
    return;
  }

  take_registers<224>();
  const int consumer = warp / 4;
  uint8_t* staging = shared + kRingBytes + consumer * staging_bytes<Config>();
  RingPosition<Config::kStages> position;
  wait_for_dependency();
  const int tokens = actual_tokens(m_on_device, m);
  for (int item = blockIdx.x; item < list.end(); item = list.after(item, tokens)) {
    GroupSums<Config> sums = {};
    multiply_run<Config, false, Config::kTokens>(sums, shared, ring, position, n_stages, Config::kTokens, consumer,
                                                 warp % 4, lane);
    const auto store = store_of_tile<Config>(d, ldd, list.at(item), segments, tokens, n, consumer, warp % 4, lane,
                                             limit);
    store_tile<Config>(store, sums, staging, warp % 4, lane);
  }
}
