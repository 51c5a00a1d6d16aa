$#-
  tile: src/kernels/moe_mma.rs   arch: templates/arch/   (tokens, experts, sizes and strides are run-time arguments)
-#$
// Generated from templates/moe_mma for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// moe_mma: one of the two grouped GEMMs of a block of experts, on mma.sync; the bandwidth path.
//   gate-up   H[p, :] = swiglu(alpha * W13[e] * X[token of p])          for every position p of an expert e
//   down      parts[slot, :] = weight[slot] * alpha * W2[e] * H[p]
//
//   operand   shape                        in memory                               read by
//   W         [n_local][n, k]              packed slabs (lib/format.cuh)           every lane, its own 16 bytes
//   X or H    [m or slots, k]              BF16, row-major, 16-byte rows           every warp, its own range of k
//   tiles     [count] int4                 expert, position, count (moe_schedule)  every thread
//   out       H BF16, parts f32            row-major                               all threads, after the sum
//
//   grid = (row blocks, tiles), up to kTokens slots of one expert to a block
//   block = kWarps warps, all on the same kRowTiles x 16 rows; warp w takes the w-th range of slabs
//
//   gate-up  | wait for the grid ahead | fetch W, X | multiply, fetching ahead ... | sum over warps | out
//   down     | fetch W | wait for the grid ahead | fetch H | multiply ...          | sum over warps | out
//
//   shared memory   kWarps rings, or tokens where codes go to registers (lib/warp_stream.cuh, lib/warp_registers.cuh);
//                   then the sums of the warps (lib/block_sum.cuh); static: rows and factor of each slot (Work)
//   barriers        rows and factors are there; then none between warps until the sum: rings are done with, sums are
//                   there; inside a warp __syncwarp and cp.async groups
//
// Gate-up fetches nothing before the wait: which expert is needed is what the grid ahead has written. It lets down go
// only behind its own wait, so when down starts, whatever gate-up has waited for is there: slots, tiles, weights of the
// router. Down reads those at once, past the L1, and waits for H alone.
//
// Tuned: row_tiles, tokens, warps, slabs, stages, signal (src/kernels/moe_mma.rs).
// Exactness: operands are exact in BF16; H is rounded to BF16 once; sums run in ascending slot and k.
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
  static constexpr bool kIsDown = ${ problem.is_down }$;    // down, or gate-up
  static constexpr int kRowTiles = ${ tile.row_tiles }$;    // 16-row tiles of a block
  static constexpr int kTokens = ${ tile.tokens }$;         // slots of a block
  static constexpr int kWarps = ${ tile.warps }$;           // warps of a block: ranges of k
  static constexpr int kSlabs = ${ tile.slabs }$;           // slabs in a stage, or in registers
  static constexpr int kStages = ${ tile.stages }$;         // stages in a warp's ring; 1: registers, no ring
  static constexpr int kSplitK = 1;
  static constexpr int kCluster = 1;
  static constexpr int kSignal = ${ tile.signal }$;         // when the next grid is let go
  static constexpr int kBlocksPerSm = ${ launch.blocks_per_sm }$;
  static constexpr int kSmemBytes = ${ launch.smem_bytes }$;
};
static_assert(larger(Config::kWarps * WarpRing<Config>::kBytes, BlockSum<Config>::kBytes) == Config::kSmemBytes,
              "host and device disagree on shared memory");

constexpr int kRows = Config::kRowTiles * kRowTile;

// A run of slabs of one expert.
struct ExpertRows {
  static constexpr bool kMayPrefetch = Config::kIsDown;
  const uint8_t* slabs;     // slab 0 of the 64 rows
  const bf16* rows_from;    // row 0 of X or H
  const int* row_idx;       // [kTokens] rows of X or H
  int64_t ld;
  int tile;                 // first row tile in the 64 rows
  int count;
  int k_end;

  struct Tokens {
    const bf16* from;
    const int* row_idx;
    int64_t ld;
    int count;
    __device__ __forceinline__ const bf16* row(int token) const { return from + row_idx[token] * ld; }
  };

  __device__ __forceinline__ const uint8_t* slab(int i) const {
    return slabs + int64_t{i} * Slab<Config::Weights>::kBytes;
  }
  __device__ __forceinline__ Tokens tokens(int) const { return {rows_from, row_idx, ld, count}; }
  __device__ __forceinline__ int k(int i) const { return i * Config::Weights::kSlabK; }
  __device__ __forceinline__ void resolve() {}
};

// Where the results of a block go.
struct Results {
  bf16* h;                  // gate-up: H, row 0
  float* parts;             // down: parts, row 0
  const int* out_idx;       // [kTokens] rows of H or parts
  const float* factor;      // [kTokens] routing weight times alpha (down)
  int64_t ld;
  int first_row;
  int n;
  float alpha_gate;
  float alpha_up;
  float limit;

  // Stores every token; `kStep` and the first are for blocks that share a tile.
  template <int kStep, class SumAt>
  __device__ __forceinline__ void each(SumAt sum_at, int n_tokens, int) const {
    static_assert(kStep == 1, "a block of experts has its tile to itself");
    constexpr int kColumns = Config::kIsDown ? kRows : kRows / 2;
    for (int o = threadIdx.x; o < Config::kTokens * kColumns; o += Config::kWarps * 32) {
      const int token = o / kColumns;
      const int column = o % kColumns;
      if (token >= n_tokens) return;
      if constexpr (Config::kIsDown) {
        const int row = first_row + column;
        if (row >= n) continue;
        parts[out_idx[token] * ld + row] = sum_at(token, column) * factor[token];
      } else {
        // Gate and up rows alternate by eights, so a block holds both halves of each of its columns.
        const int row = column / 8 * 16 + column % 8;
        if (first_row + row >= n) continue;
        const float gate = sum_at(token, row) * alpha_gate;
        const float up = sum_at(token, row + 8) * alpha_up;
        store_value(h + out_idx[token] * ld + first_row / 2 + column, swiglu(gate, up, limit));
      }
    }
  }
};

// What a block is to do, in shared memory.
struct Work {
  int row_idx[Config::kTokens];
  int out_idx[Config::kTokens];
  float factor[Config::kTokens];
};

// Fills in `work` for a tile of the list; thread i takes slot i, and every slot so many threads on.
__device__ __forceinline__ void find_rows(Work& work, int4 tile, const int* slot_of, const float* routing,
                                          const float* alpha, int top_k) {
  for (int i = threadIdx.x; i < Config::kTokens; i += Config::kWarps * 32) {
    const int position = tile.y + i;
    const int slot = i < tile.z ? __ldcg(slot_of + position) : 0;
    // Beyond the count any row will do: its column of the product is not stored.
    work.row_idx[i] = i >= tile.z ? 0 : Config::kIsDown ? position : slot / top_k;
    work.out_idx[i] = Config::kIsDown ? slot : position;
    work.factor[i] = Config::kIsDown && i < tile.z ? __ldcg(routing + slot) * alpha[tile.x] : 1.0f;
  }
}

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32, Config::kBlocksPerSm)
    moe_mma(const uint8_t* __restrict__ weights, const bf16* from, bf16* h, float* parts, const int4* tiles,
            const int* tile_count, const int* slot_of, const float* routing, const float* alpha, int64_t ld_from,
            int64_t ld_out, int n, int k, int top_k, float limit) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Work work;
  if constexpr (!Config::kIsDown) wait_for_dependency();
  if constexpr (Config::kSignal == 0) launch_dependents();
  // The list has room for the whole grid: both loads are on their way at once.
  const int4 tile = __ldcg(tiles + blockIdx.y);
  if (blockIdx.y >= __ldcg(tile_count)) {
    wait_for_dependency();
    return;
  }
  find_rows(work, tile, slot_of, routing, alpha, top_k);
  __syncthreads();

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // Down's alpha is in the factors. Loaded now, so that nobody waits for it at the end.
  const float alpha_gate = Config::kIsDown ? 1.0f : alpha[2 * tile.x];
  const float alpha_up = Config::kIsDown ? 1.0f : alpha[2 * tile.x + 1];
  const int first_row = blockIdx.x * kRows;
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int64_t row_block = int64_t{tile.x} * ceil_divide(n, kRowBlock) + first_row / kRowBlock;
  ExpertRows source{weights + row_block * n_slabs * Slab<Config::Weights>::kBytes,
                    from,
                    work.row_idx,
                    ld_from,
                    first_row % kRowBlock / kRowTile,
                    tile.z,
                    k};
  WarpSums<Config> sums = {};
  const int begin = int64_t{n_slabs} * warp / Config::kWarps;
  const int end = int64_t{n_slabs} * (warp + 1) / Config::kWarps;
  stream_slabs<Config>(sums, source, begin, end, shared + warp * WarpRing<Config>::kBytes, lane);
  const Results results{h, parts, work.out_idx, work.factor, ld_out, first_row, n, alpha_gate, alpha_up, limit};
  sum_block<Config>(sums, shared, nullptr, nullptr, 0, tile.z, results);
}
