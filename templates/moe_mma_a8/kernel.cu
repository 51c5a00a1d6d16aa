$#-
  tile: src/kernels/moe_mma.rs   arch: templates/arch/   (tokens, experts, sizes and strides are run-time arguments)
-#$
// Generated from templates/moe_mma_a8 for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// moe_mma_a8: one of the two grouped GEMMs of a block of experts with FP8 rows, on mma.sync; the bandwidth path. With
// few tokens the weights' bytes are what takes time, so the rows' E4M3 values are multiplied as BF16, which holds each:
//   gate-up   H[p, :] = swiglu(alpha * scale[t] * W13[e] * X[t])            t = token of p, a position or slot of e
//   down      parts[slot, :] = weight * alpha * scale[p] * W2[e] * H[p]     from a list of tiles
//             D[t, :] = sum over slots s of the same                   walking the slots of a token: no second pass
//
//   operand   shape                        in memory                               read by
//   W         [n_local][n, k]              slabs as a8 packs them                  every lane, its own 16 bytes
//                                          (lib/format_a8_bf16.cuh)
//   X or H    [m or slots, k]              BF16 that are E4M3 values, 16-byte      every warp, its own range of k
//                                          rows (templates/round_rows)
//   scale     [m] or [slots]               f32, of a row of X or H                 a lane or thread each
//   tiles     [count] int4                 expert, position, count (moe_schedule)  every thread
//   out       H BF16, parts f32 or D BF16  row-major; H is not yet rounded         all threads, after the sum
//
//   kWalk = false: grid = (row blocks, tiles), up to kTokens slots of one expert to a block
//   kWalk = true:  grid = (row blocks, slots or tokens), one token to a block, no schedule; down's k runs over slots
//   block = kWarps warps, all on the same kRowTiles x 16 rows; warp w takes the w-th range of slabs
//
//   round_rows X | gate-up | round_rows H | down
//   gate-up  | wait for the grid ahead | fetch scales, W, X | multiply, refilling the ring ... | sum over warps | out
//   down     | fetch W | wait for the grid ahead | fetch scales, H | multiply ...              | sum over warps | out
//
//   shared memory   kWarps rings (lib/warp_stream.cuh), then reused for the sums (lib/block_sum.cuh); row indices
//   barriers        none between warps until the sum
//
// Gate-up fetches nothing before the wait: which expert is needed is what a grid ahead has written. It lets the next
// grid go only behind its own wait, and round_rows, which goes on at once, begins behind that; so when down starts,
// whatever was written before gate-up is there: slots, tiles, weights of the router. Down reads those at once, past the
// L1. Scales and rows of H are what the grid ahead writes: they are read behind the wait.
//
// Tuned: row_tiles, tokens, warps, slabs, stages, signal (src/kernels/moe_mma.rs).
// Exactness: operands are exact in BF16, NVFP4 weights too; H is rounded to BF16 and then to E4M3 under a scale of its
// row; sums run in ascending slot and k. Slots of other ranks have no rounded row, and none is read.
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
#include "lib/format_a8_bf16.cuh"
#include "lib/reciprocal.cuh"
#include "lib/swiglu.cuh"
#include "lib/bucket.cuh"
#include "lib/epilogue.cuh"
#include "lib/warp_stream.cuh"
#include "lib/warp_registers.cuh"
#include "lib/last_arrival.cuh"
#include "lib/block_sum.cuh"

struct Config {
  using Weights = ${ problem.weights }$OfA8;                // format of W
  static constexpr bool kIsDown = ${ problem.is_down }$;    // down, or gate-up
  static constexpr bool kWalk = ${ tile.walk }$;            // one token a block and no schedule, or a list of tiles
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
static_assert(!Config::kWalk || Config::kTokens == 1, "a walk is for one token");
static_assert(Config::kTokens <= Config::kWarps * 32, "a thread for the scale of each row");

constexpr int kRows = Config::kRowTiles * kRowTile;
constexpr int kMaxSlots = 32;  // top_k of a walk
constexpr float kAlphaFactor = Config::Weights::kAlphaFactor;

// A run of slabs: of one expert, or of the experts of a token's slots one after the other.
struct Experts {
  static constexpr bool kMayPrefetch = Config::kIsDown;
  const uint8_t* weights;   // expert 0, the block's 64 rows, slab 0
  const bf16* rows_from;    // row 0 of X or H
  const float* row_scales;  // of these rows
  const int* row_idx;       // [kTokens], or [slots] of a walk: rows of X or H
  const int* expert_idx;    // [1], or [slots] of a walk
  int64_t ld;
  int64_t expert_bytes;
  int tile;
  int count;
  int n_scales;             // rows of this block: its tokens, or the slots of a walk
  int n_slabs;              // of one expert
  int k_end;
  float row_scale;          // of one of the rows: see resolve

  struct Tokens {
    const bf16* from;
    const int* row_idx;
    int64_t ld;
    int count;
    __device__ __forceinline__ const bf16* row(int token) const { return from + row_idx[token] * ld; }
  };

  __device__ __forceinline__ int slot(int i) const { return Config::kWalk && Config::kIsDown ? i / n_slabs : 0; }
  __device__ __forceinline__ const uint8_t* slab(int i) const {
    const int s = slot(i);
    return weights + expert_idx[s] * expert_bytes + int64_t{i - s * n_slabs} * Slab<Config::Weights>::kBytes;
  }
  __device__ __forceinline__ Tokens tokens(int i) const { return {rows_from, row_idx + slot(i), ld, count}; }
  __device__ __forceinline__ int k(int i) const { return (i - slot(i) * n_slabs) * Config::Weights::kSlabK; }

  // Behind the wait: brings a scale to each thread, the i-th row's to thread i, or to lane i of every warp of a walk.
  // Nobody needs it before a slot is multiplied.
  __device__ __forceinline__ void resolve() {
    const int i = Config::kWalk ? threadIdx.x % 32 : threadIdx.x;
    row_scale = i < n_scales ? __ldcg(row_scales + row_idx[i]) : 0.0f;
  }
};

// Where the results of a block go.
struct Results {
  bf16* h;                  // gate-up: H, row 0
  float* parts;             // down from a list: parts, row 0
  bf16* d;                  // down of a walk: D, this token
  const int* out_idx;       // [kTokens] rows of H or parts
  const float* factor;      // [kTokens] the row's scale; for down from a list also its routing weight and alpha
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
        if constexpr (Config::kWalk) {
          store_value(d + row, sum_at(0, column));
        } else {
          parts[out_idx[token] * ld + row] = sum_at(token, column) * factor[token];
        }
      } else {
        // Gate and up rows alternate by eights, so a block holds both halves of each of its columns.
        const int row = column / 8 * 16 + column % 8;
        if (first_row + row >= n) continue;
        const float gate = sum_at(token, row) * factor[token] * alpha_gate;
        const float up = sum_at(token, row + 8) * factor[token] * alpha_up;
        store_value(h + out_idx[token] * ld + first_row / 2 + column, swiglu(gate, up, limit));
      }
    }
  }
};

// What a block is to do, in shared memory.
struct Work {
  int expert_idx[kMaxSlots];
  int row_idx[larger(Config::kTokens, kMaxSlots)];
  int out_idx[Config::kTokens];
  float factor[larger(Config::kTokens, kMaxSlots)];
  int n_tokens;
  int n_slots;
};

// Fills in `work` from the tile list; thread i takes slot i.
__device__ __forceinline__ void work_from_list(Work& work, const int4* tiles, const int* tile_count, const int* slot_of,
                                               const float* routing, const float* alpha, int top_k) {
  // The list has room for the whole grid: both loads are on their way at once.
  const int4 listed = __ldcg(tiles + blockIdx.y);
  const int4 tile = blockIdx.y < __ldcg(tile_count) ? listed : make_int4(0, 0, 0, 0);
  if (threadIdx.x == 0) {
    work.expert_idx[0] = tile.x;
    work.n_tokens = tile.z;
    work.n_slots = 1;
  }
  for (int i = threadIdx.x; i < Config::kTokens; i += Config::kWarps * 32) {
    const int position = tile.y + i;
    const int slot = i < tile.z ? __ldcg(slot_of + position) : 0;
    // Beyond the count any row will do: its column of the product is not stored.
    work.row_idx[i] = i >= tile.z ? 0 : Config::kIsDown ? position : slot / top_k;
    work.out_idx[i] = Config::kIsDown ? slot : position;
    work.factor[i] = Config::kIsDown && i < tile.z ? __ldcg(routing + slot) * (alpha[tile.x] * kAlphaFactor) : 1.0f;
  }
}

// Fills in `work` for one slot (gate-up) or all local slots of one token (down), a lane of the first warp each: one
// after the other, six slots would cost six times the latency of two loads. Foreign ones are left out, the order stays.
__device__ __forceinline__ void work_from_slots(Work& work, const int* experts, const float* routing,
                                                const float* alpha, int n_tokens, int top_k, int expert_offset,
                                                int n_local) {
  if (threadIdx.x >= 32) return;
  const int first = Config::kIsDown ? blockIdx.y * top_k : blockIdx.y;
  const int slot = first + threadIdx.x;
  const bool is_own = threadIdx.x < (Config::kIsDown ? top_k : 1) && slot < n_tokens * top_k;
  const int expert = is_own ? __ldcg(experts + slot) - expert_offset : -1;
  const bool is_local = expert >= 0 && expert < n_local;
  const unsigned local = __ballot_sync(~0u, is_local);
  if (is_local) {
    const int i = __popc(local & ((1u << threadIdx.x) - 1));
    work.expert_idx[i] = expert;
    work.row_idx[i] = Config::kIsDown ? slot : slot / top_k;
    work.factor[i] = Config::kIsDown ? __ldcg(routing + slot) * (alpha[expert] * kAlphaFactor) : 1.0f;
    if constexpr (!Config::kIsDown) work.out_idx[0] = slot;
  }
  if (threadIdx.x == 0) {
    work.n_slots = __popc(local);
    // A token without a local slot still gets its row of zeros.
    work.n_tokens = Config::kIsDown ? first < n_tokens * top_k : __popc(local);
  }
}

// The experts that the rows of this block are multiplied with, one after the other.
__device__ __forceinline__ Experts experts_of_block(const Work& work, const uint8_t* weights, const bf16* from,
                                                    const float* row_scales, int64_t ld_from, int n, int k) {
  const int first_row = blockIdx.x * kRows;
  Experts source;
  source.n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int64_t block_bytes = int64_t{source.n_slabs} * Slab<Config::Weights>::kBytes;
  source.expert_bytes = ceil_divide(n, kRowBlock) * block_bytes;
  source.weights = weights + first_row / kRowBlock * block_bytes;
  source.rows_from = from;
  source.row_scales = row_scales;
  source.row_idx = work.row_idx;
  source.expert_idx = work.expert_idx;
  source.ld = ld_from;
  source.tile = first_row % kRowBlock / kRowTile;
  source.count = work.n_tokens;
  source.n_scales = Config::kWalk ? work.n_slots : work.n_tokens;
  source.k_end = k;
  // Gate-up has waited already; down does when its weights are on their way.
  if constexpr (!Config::kIsDown) source.resolve();
  return source;
}

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32, Config::kBlocksPerSm)
    moe_mma_a8(const uint8_t* __restrict__ weights, const bf16* from, const float* row_scales, bf16* h, float* parts,
               bf16* d, const int4* tiles, const int* tile_count, const int* slot_of, const int* experts,
               const float* routing, const float* alpha, const int* m_on_device, int64_t ld_from, int64_t ld_out, int m,
               int n, int k, int top_k, int expert_offset, int n_local, float limit) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Work work;
  if constexpr (!Config::kIsDown) wait_for_dependency();
  if constexpr (Config::kSignal == 0) launch_dependents();
  if constexpr (Config::kWalk) {
    work_from_slots(work, experts, routing, alpha, actual_tokens(m_on_device, m), top_k, expert_offset, n_local);
  } else {
    work_from_list(work, tiles, tile_count, slot_of, routing, alpha, top_k);
  }
  __syncthreads();
  // Beyond the list, and for a slot of a foreign expert.
  if (work.n_tokens == 0) {
    wait_for_dependency();
    return;
  }

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // Down's alpha is in the factors. Loaded now, so that nobody waits for it at the end.
  const float* gate_up = alpha + 2 * work.expert_idx[0];
  const float alpha_gate = Config::kIsDown ? 1.0f : gate_up[0];
  const float alpha_up = Config::kIsDown ? 1.0f : gate_up[1];
  Experts source = experts_of_block(work, weights, from, row_scales, ld_from, n, k);
  WarpSums<Config> sums = {};
  const int all_slabs = source.n_slabs * work.n_slots;
  const int begin = int64_t{all_slabs} * warp / Config::kWarps;
  const int end = int64_t{all_slabs} * (warp + 1) / Config::kWarps;
  uint8_t* ring = shared + warp * WarpRing<Config>::kBytes;
  if constexpr (Config::kWalk && Config::kIsDown) {
    // A slot's sum is scaled when its last slab is done, or where this warp's range ends: both parts of a slot that two
    // warps share have the same factor, so it does not matter where the ranges cut.
    WarpSums<Config> slot_sums = {};
    stream_slabs<Config>(slot_sums, source, begin, end, ring, lane, [&](int i) {
      if (i + 1 < end && (i + 1) % source.n_slabs != 0) return;
      const int slot = i / source.n_slabs;
      const float factor = work.factor[slot] * __shfl_sync(~0u, source.row_scale, slot);
#pragma unroll
      for (int tile = 0; tile < Config::kRowTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[tile][0][j] = __fmaf_rn(slot_sums[tile][0][j], factor, sums[tile][0][j]);
          slot_sums[tile][0][j] = 0.0f;
        }
      }
    });
  } else {
    stream_slabs<Config>(sums, source, begin, end, ring, lane, [](int) {});
    // The thread's own factor so far; the sum's barriers stand between here and those who read it.
    if (int(threadIdx.x) < work.n_tokens) work.factor[threadIdx.x] *= source.row_scale;
  }
  const int first_row = blockIdx.x * kRows;
  const Results results{h, parts, d + blockIdx.y * ld_out, work.out_idx, work.factor, ld_out, first_row,
                        n, alpha_gate * kAlphaFactor, alpha_up * kAlphaFactor, limit};
  sum_block<Config>(sums, shared, nullptr, nullptr, 0, work.n_tokens, results);
}
