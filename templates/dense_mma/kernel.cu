$#-
  tile: src/kernels/dense_mma.rs   without a ring: lib/warp_registers.cuh   arch: templates/arch/   (sizes: run time)
-#$
// Generated from templates/dense_mma for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// dense_mma: D[m, g * n + r] = alpha[segment(r)] * sum_k A[m, g * k + k'] * W[g][r, k'], packed weights, BF16 tokens.
// The bandwidth path: mma.sync with the weights as its 16-row operand, so that one token costs as little as eight.
//
//   operand  shape               in memory                               read by
//   W        [groups][n, k]      packed slabs (lib/format.cuh)           every lane, its own 16 bytes
//   A        [m, groups * k]     BF16, row-major, 16-byte rows           every warp, its own range of k
//   D        [m, groups * n]     BF16 or f32, row-major                  all threads, after the sum over warps
//
//   block = kWarps warps, all on the same kRowTiles x 16 rows and kTokens tokens; warp w takes the w-th range of slabs
//   grid  = (row blocks of all groups x kParts, token tiles); kParts blocks share a tile's k
//
//   warp   | fetch W ... | wait for the grid ahead | fetch A | multiply, fetching ahead ... |
//   block                                                                                  | sum over warps | D
//
//   shared memory   kWarps rings, or tokens where codes go to registers (lib/warp_stream.cuh, lib/warp_registers.cuh);
//                   then the sums of the warps (lib/block_sum.cuh); behind both what a cluster's blocks send to each
//                   other; static, with kSplitK: whether the block was the last of its tile to arrive
//   barriers        none between warps until the sum: rings are done with, sums are there; inside a warp __syncwarp and
//                   cp.async groups. kSplitK: parts are written, the ticket is drawn. kCluster: all blocks have begun,
//                   all parts have come
//
// The more blocks share k, the more rows a block can have and the fewer of them fetch the same tokens. Their parts meet
// in memory (kSplitK) or, faster but only where a cluster finds room at once, in each other's shared memory (kCluster).
//
// Tuned: row_tiles, tokens, warps, slabs, stages, split, cluster, signal (src/kernels/dense_mma.rs). Limits: k in whole
// scale groups, A on 16 bytes, lda % 8 == 0; rows beyond n are computed on zeros and not stored.
// Exactness: operands are exact in BF16; differs from quant's reference only by the order of the f32 sum.
// After: the layout and the prefetch before the dependency follow a sketch that is not kept (docs/hopper.md);
// last-arriver sums follow stream-K as in Marlin and CUTLASS.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/clamp.cuh"
#include "arch/cluster.cuh"
#include "arch/dependent.cuh"
#include "arch/load.cuh"
#include "arch/matrix.cuh"
#include "arch/reciprocal.cuh"
#include "lib/format.cuh"
#include "lib/reciprocal.cuh"
#include "lib/swiglu.cuh"
#include "lib/bucket.cuh"
#include "lib/epilogue.cuh"
#include "lib/warp_stream.cuh"
#include "lib/warp_registers.cuh"
#include "lib/last_arrival.cuh"
#include "lib/block_sum.cuh"

struct Config {
  using Weights = ${ problem.weights }$;                    // format of W
  using Out = ${ problem.out }$;                            // element of D
  static constexpr bool kSwiGlu = ${ problem.swiglu }$;     // rows alternate: 8 gate, 8 up
  static constexpr int kRowTiles = ${ tile.row_tiles }$;    // 16-row tiles of a block
  static constexpr int kTokens = ${ tile.tokens }$;         // tokens of a block
  static constexpr int kWarps = ${ tile.warps }$;           // warps of a block: ranges of k
  static constexpr int kSlabs = ${ tile.slabs }$;           // slabs in a stage, or in registers
  static constexpr int kStages = ${ tile.stages }$;         // stages in a warp's ring; 1: registers, no ring
  static constexpr int kSplitK = ${ tile.split }$;          // blocks that share a tile's k through memory
  static constexpr int kCluster = ${ tile.cluster }$;       // blocks that share a tile's k in a cluster
  static constexpr int kSignal = ${ tile.signal }$;         // when the next grid is let go
  static constexpr int kBlocksPerSm = ${ launch.blocks_per_sm }$;
  static constexpr int kSmemBytes = ${ launch.smem_bytes }$;
};
static_assert(Config::kSplitK == 1 || Config::kCluster == 1, "parts meet in memory or in a cluster");

constexpr int kRows = Config::kRowTiles * kRowTile;
constexpr int kParts = Config::kSplitK * Config::kCluster;
// Behind what the block needs for itself.
constexpr int kReceivedOffset = larger(Config::kWarps * WarpRing<Config>::kBytes, BlockSum<Config>::kBytes);
static_assert(kReceivedOffset + ClusterSum<Config>::kBytes == Config::kSmemBytes,
              "host and device disagree on shared memory");

// One block of rows of one group and its range of slabs.
struct RowBlock {
  static constexpr bool kMayPrefetch = true;
  const uint8_t* slabs;   // slab 0 of the 64 rows
  int tile;               // first row tile in them
  const bf16* a;          // token 0 of the tile, first column of the group
  const int* m_on_device;
  int64_t lda;
  int first_token;
  int m;
  int k_end;

  struct Tokens {
    const bf16* a;
    int64_t lda;
    int count;
    __device__ __forceinline__ const bf16* row(int token) const { return a + token * lda; }
  };

  __device__ __forceinline__ const uint8_t* slab(int i) const {
    return slabs + int64_t{i} * Slab<Config::Weights>::kBytes;
  }
  __device__ __forceinline__ Tokens tokens(int) const { return {a, lda, m - first_token}; }
  __device__ __forceinline__ int k(int i) const { return i * Config::Weights::kSlabK; }
  __device__ __forceinline__ void resolve() { m = actual_tokens(m_on_device, m); }
};

// Where the results of a block go.
struct Results {
  Config::Out* d;  // token 0 of the tile, column 0 of the group
  int64_t ldd;
  int first_row;
  int n;
  Segments segments;
  float limit;

  // Stores every kStep-th token from `first_token` on.
  template <int kStep, class SumAt>
  __device__ __forceinline__ void each(SumAt sum_at, int n_tokens, int first_token) const {
    constexpr int kColumns = Config::kSwiGlu ? kRows / 2 : kRows;
    for (int o = threadIdx.x; o < ceil_divide(Config::kTokens, kStep) * kColumns; o += Config::kWarps * 32) {
      const int token = first_token + o / kColumns * kStep;
      const int column = o % kColumns;
      if (token >= smaller(n_tokens, Config::kTokens)) return;
      if constexpr (Config::kSwiGlu) {
        const int row = first_row + column / 8 * 16 + column % 8;
        if (row >= n) continue;
        const float gate = sum_at(token, row - first_row) * segments.alpha[0];
        const float up = sum_at(token, row - first_row + 8) * segments.alpha[1];
        store_value(d + token * ldd + first_row / 2 + column, swiglu(gate, up, limit));
      } else {
        const int row = first_row + column;
        if (row < n) store_value(d + token * ldd + row, sum_at(token, column) * alpha_of_row(segments, row));
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32, Config::kBlocksPerSm)${ launch.cluster }$
    dense_mma(const uint8_t* __restrict__ weights, const bf16* a, Config::Out* d, const int* m_on_device,
              float* partials, unsigned* tickets, int64_t lda, int64_t ldd, int m, int n, int k, int groups,
              float limit, const __grid_constant__ Segments segments) {
  extern __shared__ __align__(128) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  if constexpr (Config::kCluster > 1) cluster_arrive();  // this block has begun, its memory may be written
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int row_blocks = ceil_divide(n, kRowBlock);                  // blocks of 64 rows in a group
  const int tiles = ceil_divide(row_blocks * kRowBlock, kRows);      // blocks of threads for a group's rows
  const int part = blockIdx.x % kParts;                              // of a cluster this is the rank
  const int tile_idx = blockIdx.x / kParts;
  const int group = tile_idx / tiles;
  const int first_row = tile_idx % tiles * kRows;
  const int first_token = blockIdx.y * Config::kTokens;

  RowBlock source;
  const int64_t first_slab = (int64_t{group} * row_blocks + first_row / kRowBlock) * n_slabs;
  source.slabs = weights + first_slab * Slab<Config::Weights>::kBytes;
  source.tile = first_row % kRowBlock / kRowTile;
  source.a = a + first_token * lda + int64_t{group} * k;
  source.m_on_device = m_on_device;
  source.lda = lda;
  source.first_token = first_token;
  source.m = m;
  source.k_end = k;

  WarpSums<Config> sums = {};
  constexpr int kRanges = kParts * Config::kWarps;
  const int range = part * Config::kWarps + warp;
  const int begin = int64_t{n_slabs} * range / kRanges;
  const int end = int64_t{n_slabs} * (range + 1) / kRanges;
  stream_slabs<Config>(sums, source, begin, end, shared + warp * WarpRing<Config>::kBytes, lane);

  const int columns = Config::kSwiGlu ? n / 2 : n;
  const Results results{d + first_token * ldd + int64_t{group} * columns, ldd, first_row, n, segments, limit};
  if constexpr (Config::kCluster > 1) {
    float* received = reinterpret_cast<float*>(shared + kReceivedOffset);
    sum_cluster<Config>(sums, shared, received, part, source.m - first_token, results);
  } else {
    const int64_t tile = int64_t{blockIdx.y} * (gridDim.x / kParts) + tile_idx;
    sum_block<Config>(sums, shared, partials + tile * kParts * Config::kTokens * kRows, tickets + tile, part,
                      source.m - first_token, results);
  }
}
