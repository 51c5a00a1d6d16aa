$#-
  tile: src/kernels/dense_persistent_a8.rs   arch: templates/arch/   (M, N, K, strides and alpha are run-time arguments)
-#$
// Generated from templates/dense_persistent_a8 for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// dense_persistent_a8: D[m, g * n + r] = scale[m] * alpha[segment(r)] * sum_k A[m, g * k + k'] * W[g][r, k'], FP8
// tokens. dense_wgmma_a8 for many tiles: a block an SM goes from tile to tile (lib/tile_walk.cuh).
//
//   operand  shape               in memory                              read by
//   W        [groups][n, k]      packed slabs (lib/format.cuh)          producer (bulk copy of contiguous slabs)
//   A        [m, groups * k]     E4M3, row-major, k of each 16 in the   producer (tensor map [k, m, group], 128 B
//                                order of lib/format_a8.cuh             swizzle)
//   scale    [m]                 f32                                    consumers, after the sum
//   D        [m, groups * n]     BF16 or f32, row-major                 written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + a producer       ring of kStages stages (lib/warpgroup_multiply_a8.cuh)
//   ---------------------------------------------------------   -----------------------------------------------------
//   one thread   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 32 wgmma   -> stage_free[s]
//   behind the barriers a table of NVFP4's scales (2 KiB), which all threads make before anything has come
//
//   barrier      arrivals              announces
//   stage_full   1 + bytes             weights and tokens of the stage have landed
//   stage_free   4 * kConsumers        each consumer warp's wgmma have read the stage
//   0            all threads           (__syncthreads) the barriers above are ready, the table is made
//
// Tuned: consumers, tokens, block_k, stages, promote, signal, raster (src/kernels/dense_persistent_a8.rs).
// Limits: k in whole groups of 16, A on 16 bytes, lda % 16 == 0; what lies beyond k or m comes as zeros.
// Exactness: that of dense_wgmma_a8, whose bits these are with k in one part.
// After: PTX ISA "wgmma"; promotion and the walk over tiles follow DeepGEMM in idea.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
#include "arch/barrier.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/bulk_copy.cuh"
#include "arch/bytes.cuh"
#include "arch/clamp.cuh"
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
#include "lib/tile_walk.cuh"

struct Config {
  using Weights = ${ problem.weights }$A8;                  // format of W
  using Out = ${ problem.out }$;                            // element of D
  static constexpr bool kSwiGlu = ${ problem.swiglu }$;     // rows alternate: 8 gate, 8 up
  static constexpr int kConsumers = ${ tile.consumers }$;   // warpgroups, 64 rows each
  static constexpr int kTokens = ${ tile.tokens }$;         // tokens of a tile
  static constexpr int kBlockK = ${ tile.block_k }$;        // k of a stage
  static constexpr int kStages = ${ tile.stages }$;         // stages in the ring
  static constexpr int kPromote = ${ tile.promote }$;       // k of a chain of tensor-core sums; 0: all
  static constexpr int kSplitK = 1;
  static constexpr int kCluster = 1;
  static constexpr int kSignal = ${ tile.signal }$;         // when the next grid is let go: 0 at once, else at the end
  static constexpr int kThreads = ${ launch.threads }$;     // consumers, then a warpgroup of producers
  static constexpr int kSmemBytes = ${ launch.smem_bytes }$;
};

constexpr int kConsumerThreads = Config::kConsumers * 128;
static_assert(Config::kConsumers == 2 && Config::kThreads == kConsumerThreads + 128,
              "three warpgroups of 168 registers fill an SM");
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
// Behind the ring: each consumer's room for results on their way out and for each warp's scales, then the barriers and
// the table.
constexpr int kScaleBytes = Config::kTokens * 4;
constexpr int kStagingBytes = staging_bytes<Config>() + 4 * kScaleBytes;
constexpr int kBarrierOffset = kRingBytes + Config::kConsumers * kStagingBytes;
constexpr int kTableOffset = kBarrierOffset + Ring<Config::kStages>::kBarrierBytes + 16;
constexpr int kTableBytes = Config::Weights::kHasTable ? 256 * 8 : 0;
static_assert(kTableOffset + kTableBytes == Config::kSmemBytes, "host and device disagree on shared memory");
static_assert(Config::kTokens % kStagingTokens == 0, "results leave by sixteen tokens");

// Scales of a tile's tokens on their way to `scales`, which is a warp's own; zeros for tokens that are not there.
__device__ __forceinline__ void copy_scales(float* scales, const float* row_scales, int count, int lane) {
  __syncwarp();  // those of the tile before have been read
#pragma unroll
  for (int first = 0; first < Config::kTokens; first += 128) {
    const int token = first + lane * 4;
    const int bytes = larger(0, smaller(4, count - token)) * 4;
    if (token < Config::kTokens) {
      copy_async_16_or_zeros(smem_address(scales + token), bytes > 0 ? row_scales + token : row_scales, bytes);
    }
  }
  commit_copies();
}

// Multiplies each token's sums by its scale.
__device__ __forceinline__ void scale_tokens(GroupSums<Config>& sums, const float* scales, int lane) {
  wait_copies<0>();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Config::kTokens / 8; ++i) {
    const float2 scale = *reinterpret_cast<const float2*>(scales + i * 8 + lane % 4 * 2);
    sums[4 * i] *= scale.x;
    sums[4 * i + 1] *= scale.y;
    sums[4 * i + 2] *= scale.x;
    sums[4 * i + 3] *= scale.y;
  }
}

// The sums of a tile, begun at zero.
__device__ __forceinline__ void multiply(GroupSums<Config>& totals, const uint8_t* stages, const uint2* table,
                                         Ring<Config::kStages> ring, RingPosition<Config::kStages>& position,
                                         int n_stages, int consumer, int lane) {
  constexpr int kTokens = Config::kTokens;
  if constexpr (Config::kPromote > 0) {
    GroupSums<Config> sums = {};
    multiply_run<Config, false, kTokens>(totals, sums, stages, table, ring, position, n_stages, kTokens, consumer,
                                         lane);
  } else {
    multiply_run<Config, false, kTokens>(totals, totals, stages, table, ring, position, n_stages, kTokens, consumer,
                                         lane);
  }
}

extern "C" __global__ void __launch_bounds__(Config::kThreads, 1)
    dense_persistent_a8(const uint8_t* __restrict__ weights, const __grid_constant__ TensorMap a,
                        const float* row_scales, Config::Out* d, const int* m_on_device, int64_t ldd, int m, int n,
                        int k, int groups, int is_raster_by_token, float limit,
                        const __grid_constant__ Segments segments) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kBarrierOffset};
  uint2* table = reinterpret_cast<uint2*>(shared + kTableOffset);
  if (threadIdx.x == 0) ring.init(1, 4 * Config::kConsumers);
  if constexpr (Config::Weights::kHasTable) {
    for (int byte = threadIdx.x; byte < 256; byte += Config::kThreads) table[byte] = table_of_e5m3(byte);
  }
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
  uint8_t* staging = shared + kRingBytes + consumer * kStagingBytes;
  float* scales = reinterpret_cast<float*>(staging + staging_bytes<Config>() + warp % 4 * kScaleBytes);
  RingPosition<Config::kStages> position;
  wait_for_dependency();
  const int tokens = actual_tokens(m_on_device, m);
  for (int item = blockIdx.x; item < list.end(); item = list.after(item, tokens)) {
    const Work work = list.at(item);
    copy_scales(scales, row_scales + work.first_token, tokens - work.first_token, lane);
    GroupSums<Config> sums = {};
    multiply(sums, shared, table, ring, position, n_stages, consumer, lane);
    const auto store = store_of_tile<Config>(d, ldd, work, segments, tokens, n, consumer, warp % 4, lane, limit);
    scale_tokens(sums, scales, lane);
    store_tile<Config>(store, sums, staging, warp % 4, lane);
  }
}
