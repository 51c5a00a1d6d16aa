$#-
  tile: src/kernels/moe_staged.rs   arch: templates/arch/   (tokens, experts, sizes and strides are run-time arguments)
-#$
// Generated from templates/moe_staged for ${ arch.name }$, ${ tile.id }$. Do not edit.
//
// moe_staged: one of the two grouped GEMMs of a block of experts that have few rows each, on mma.sync. What takes time
// is the weights' bytes, so a warp does little besides streaming and decoding them:
//   gate-up   H[p, :] = swiglu(alpha * W13[e] * X[token of p])          for every position or slot p of an expert e
//   down      parts[slot, :] = weight[slot] * alpha * W2[e] * H[p]      from a list of tiles
//             D[t, :] = sum over slots s of weight * alpha * W2[e] * H  walking the slots of a token: no second pass
// With FP8 rows (kRounds) E4M3 values under a scale of their row, which BF16 holds, take the place of X and H.
//
//   operand   shape                        in memory                               read by
//   W         [n_local][n, k]              packed slabs (lib/format.cuh)           every lane, its own 16 bytes
//   X or H    [m or slots, k]              BF16, row-major, 16-byte rows           all warps, once, to shared memory
//   tiles     [count] int4                 expert, position, count (moe_schedule)  every thread
//   counters  [3] uint32                   of templates/quantise, with kRounds     added to, but the first
//   out       H BF16, parts f32 or D BF16  row-major                               the warps of the first range of k
//
//   kWalk = false: grid = (groups of kTiles row tiles, tiles), up to kTokens slots of one expert to a block
//   kWalk = true:  grid = (the same, slots or tokens), one token to a block, no schedule; down's k runs over slots
//   block = kWarps warps, kTiles x kRanges: warp w has row tile w % kTiles of 16 rows and range w / kTiles of slabs
//
//   gate-up  | wait for the grid ahead | fetch W | stage X | multiply, refilling the ring ... | sum over ranges | out
//   down     | fetch W | wait for the grid ahead | stage H | multiply ...                     | sum over ranges | out
//
//   shared memory   rows (lib/staged_rows.cuh), then the sums of all ranges but one; behind `rows_bytes` a ring a warp
//                   (lib/tile_ring.cuh); static: what the block is to do (Work), magnitudes of rows (RowScales)
//   barriers        the block knows what to do; with kRounds magnitudes are there; rows are ready; with kRanges > 1
//                   rows are done with, sums are there; inside a warp __syncwarp and cp.async groups
//
// Gate-up fetches nothing before the wait: which expert is needed is what the grid ahead has written. It lets down go
// only behind its own wait, so when down starts, whatever gate-up has waited for is there: slots, tiles, weights of the
// router. Down reads those at once, past the L1, and waits for H alone.
//
// Tuned: tiles, ranges, tokens, slabs, stages, signal (src/kernels/moe_staged.rs).
// Exactness: operands are exact in BF16; H is rounded to BF16 once, and with kRounds X and H to E4M3, by IEEE division;
// sums run in ascending slot and k. NaN and infinities take no part in a row's scale: they are counted, and become 0.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/clamp.cuh"
#include "arch/dependent.cuh"
#include "arch/fp8.cuh"
#include "arch/matrix.cuh"
#include "arch/reciprocal.cuh"
#include "lib/elements.cuh"
#include "lib/format.cuh"
#include "lib/format_a8_bf16.cuh"
#include "lib/reciprocal.cuh"
#include "lib/swiglu.cuh"
#include "lib/bucket.cuh"
#include "lib/epilogue.cuh"
#include "lib/staged_rows.cuh"
#include "lib/tile_ring.cuh"

struct Config {
  using Weights = ${ problem.weights }$;                    // format of W
  static constexpr bool kIsDown = ${ problem.is_down }$;    // down, or gate-up
  static constexpr bool kRounds = ${ problem.rounds }$;     // FP8 rows
  static constexpr bool kWalk = ${ tile.walk }$;            // one token a block and no schedule, or a list of tiles
  static constexpr int kTiles = ${ tile.tiles }$;           // 16-row tiles of a block
  static constexpr int kRanges = ${ tile.ranges }$;         // warps that share a row tile's k
  static constexpr int kTokens = ${ tile.tokens }$;         // slots of a block
  static constexpr int kSlabs = ${ tile.slabs }$;           // slabs in a stage
  static constexpr int kStages = ${ tile.stages }$;         // stages in a warp's ring
  static constexpr int kSignal = ${ tile.signal }$;         // next grid: 0 at once (gate-up: after its wait), 3 last
  static constexpr int kBoundThreads = ${ launch.bound_threads }$;  // for ptxas: registers for as many, room for others
  static constexpr int kMostSlots = ${ launch.most_slots }$;        // of a token, in a walk
  static constexpr int kRingBytes = ${ launch.ring_bytes }$;        // of a warp's ring
  static constexpr int kStaticBytes = ${ launch.static_bytes }$;    // the host's room for static shared memory
  static constexpr int kWarps = kTiles * kRanges;
  static constexpr int kMostRows = kWalk && kIsDown ? kMostSlots : kTokens;  // staged: slots of a token, or slots
};
static_assert(!Config::kWalk || Config::kTokens == 1, "a walk is for one token");
static_assert(Config::kMostSlots <= 32, "a slot of a walk is a lane's of one warp");
static_assert(Config::kTokens <= 8, "one fragment of tokens");
static_assert(TileRing<Config>::kBytes == Config::kRingBytes, "host and device disagree on shared memory");
static_assert(TileRing<Config>::kStageBytes % 16 == 0, "copies are of 16 bytes");

// Down of a walk goes from one expert to the next.
constexpr bool kCrosses = Config::kWalk && Config::kIsDown;
constexpr int kSlabBytes = Slab<Config::Weights>::kBytes;

// What alpha is multiplied by: with FP8 rows it is that of operands in E4M3.
template <class Format>
__device__ constexpr float alpha_factor() {
  if constexpr (Config::kRounds) return Format::kAlphaFactor;
  return 1.0f;
}

// What a block is to do, in shared memory.
struct Work {
  int expert_idx[Config::kMostRows];  // of each slot of a walk; of a list only the first
  int row_idx[Config::kMostRows];     // row of X or H
  int out_idx[Config::kTokens];       // row of H or parts
  float factor[Config::kMostRows];    // routing weight times alpha, for down
  bool is_counted[Config::kMostRows]; // whether this block counts what is not finite in the row
  int n_tokens;
  int n_slots;
};
static_assert(sizeof(Work) + sizeof(RowScales<Config>) <= Config::kStaticBytes, "the host has left too little room");

// Who else may be asked.
struct Routing {
  const int* experts;
  const float* weights;
  const float* alpha;
  int top_k;
  int expert_offset;
  int n_local;

  // Number of the slot's expert on this rank, or something negative.
  __device__ __forceinline__ int local_expert(int slot) const {
    const int expert = __ldcg(experts + slot) - expert_offset;
    return expert < n_local ? expert : -1;
  }

  // Routing weight times what the sums of this expert are multiplied by.
  __device__ __forceinline__ float down_factor(int slot, int expert) const {
    return __ldcg(weights + slot) * (alpha[expert] * alpha_factor<Config::Weights>());
  }

  // A token that several experts take is counted with the first of them.
  __device__ __forceinline__ bool is_first_of_token(int slot) const {
    for (int other = slot - slot % top_k; other < slot; ++other) {
      if (local_expert(other) >= 0) return false;
    }
    return true;
  }
};

// Fills in `work` from the tile of the list; thread i takes slot i.
__device__ __forceinline__ void work_from_list(Work& work, int4 tile, const int* slot_of, const Routing& routing) {
  if (threadIdx.x == 0) {
    work.expert_idx[0] = tile.x;
    work.n_tokens = tile.z;
    work.n_slots = 1;
  }
  const int i = threadIdx.x;
  if (i >= smaller(tile.z, Config::kTokens)) return;
  const int position = tile.y + i;
  const int slot = __ldcg(slot_of + position);
  work.row_idx[i] = Config::kIsDown ? position : slot / routing.top_k;
  work.out_idx[i] = Config::kIsDown ? slot : position;
  if constexpr (Config::kIsDown) work.factor[i] = routing.down_factor(slot, tile.x);
  if constexpr (Config::kRounds) {
    work.is_counted[i] = blockIdx.x == 0 && (Config::kIsDown || routing.is_first_of_token(slot));
  }
}

// Fills in `work` for one slot (gate-up) or all local slots of one token (down), a lane of the first warp each: one
// after the other, six slots would cost six times the latency of two loads. Foreign ones are left out, the order stays.
__device__ __forceinline__ void work_from_slots(Work& work, int n_tokens, const Routing& routing) {
  if (threadIdx.x >= 32) return;
  const int first = Config::kIsDown ? blockIdx.y * routing.top_k : blockIdx.y;
  const int slot = first + threadIdx.x;
  const bool is_own = threadIdx.x < (Config::kIsDown ? routing.top_k : 1) && slot < n_tokens * routing.top_k;
  const int expert = is_own ? routing.local_expert(slot) : -1;
  const unsigned local = __ballot_sync(~0u, expert >= 0);
  if (expert >= 0) {
    const int i = __popc(local & ((1u << threadIdx.x) - 1));
    work.expert_idx[i] = expert;
    work.row_idx[i] = Config::kIsDown ? slot : slot / routing.top_k;
    if constexpr (Config::kIsDown) work.factor[i] = routing.down_factor(slot, expert);
    if constexpr (!Config::kIsDown) work.out_idx[0] = slot;
    if constexpr (Config::kRounds) {
      work.is_counted[i] = blockIdx.x == 0 && (Config::kIsDown || routing.is_first_of_token(slot));
    }
  }
  if (threadIdx.x == 0) {
    work.n_slots = __popc(local);
    // A token without a local slot still gets its row of zeros.
    work.n_tokens = Config::kIsDown ? first < n_tokens * routing.top_k : __popc(local);
  }
}

// What a warp multiplies: groups of kSlabs slabs, the last of an expert maybe fewer, of its row tile in one expert, or
// in the experts of a token's slots in turn.
struct Range {
  int begin;  // groups
  int end;
  int slot;   // of the first group
  int slab;   // of its expert

  __device__ __forceinline__ Range(int n_slots, int n_slabs, int range) {
    const int of_slot = ceil_divide(n_slabs, Config::kSlabs);
    begin = n_slots * of_slot * range / Config::kRanges;
    end = n_slots * of_slot * (range + 1) / Config::kRanges;
    slot = kCrosses && begin < end ? begin / of_slot : 0;
    slab = (begin - slot * of_slot) * Config::kSlabs;
  }
};

// Where the group stands that is fetched next.
struct NextGroup {
  const uint8_t* codes;   // what this lane copies of slab 0 of expert 0
  const uint8_t* scales;
  const int* expert_idx;  // of each slot
  int64_t expert_bytes;
  int n_slabs;            // of an expert
  int slot;
  int slab;
  int64_t at;             // bytes from slab 0 of expert 0

  __device__ __forceinline__ void start(int first_slot, int first_slab) {
    slot = first_slot;
    slab = first_slab;
    at = expert_idx[slot] * expert_bytes + int64_t{slab} * kSlabBytes;
  }

  // Goes on to the group behind it, which must be there.
  __device__ __forceinline__ void advance() {
    slab += Config::kSlabs;
    at += Config::kSlabs * kSlabBytes;
    if (kCrosses && slab >= n_slabs) start(slot + 1, 0);
  }

  __device__ __forceinline__ bool has(int s) const { return slab + s < n_slabs; }

  // Starts the copies of the group, number `group`, to a stage of this warp's ring, if it is there, and goes on.
  __device__ __forceinline__ void fetch_and_advance(int group, int end, uint32_t stage, int lane) {
    if (group < end) {
      fetch(stage, lane);
      if (group + 1 < end) advance();
    }
    commit_copies();
  }

  // Starts the copies of the group.
  __device__ __forceinline__ void fetch(uint32_t stage, int lane) const {
    using Ring = TileRing<Config>;
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      if (has(s)) Ring::fetch_codes(stage, s, codes + at + s * kSlabBytes, lane);
    }
    if (lane < Ring::kScaleLanes && has(lane / Ring::kScalePieces)) Ring::fetch_scales(stage, scales + at, lane);
  }
};

// Groups of row tile `row_tile` of experts of n rows; `start` gives the first.
__device__ __forceinline__ NextGroup groups_of(const uint8_t* weights, const int* expert_idx, int row_tile, int n,
                                               int n_slabs, int lane) {
  using Ring = TileRing<Config>;
  constexpr int kTilesOfBlock = kRowBlock / kRowTile;
  const int64_t block_bytes = int64_t{n_slabs} * kSlabBytes;
  const uint8_t* first_slab = weights + row_tile / kTilesOfBlock * block_bytes;
  NextGroup next;
  next.codes = Ring::own_codes(first_slab, row_tile % kTilesOfBlock, lane);
  next.scales = Ring::own_scales(first_slab, row_tile % kTilesOfBlock, lane);
  next.expert_idx = expert_idx;
  next.expert_bytes = ceil_divide(n, kRowBlock) * block_bytes;
  next.n_slabs = n_slabs;
  return next;
}

// Multiplies one slab of a stage with up to eight tokens; `rows` is what this lane reads of theirs.
__device__ __forceinline__ void multiply_slab(float (&sums)[4], uint32_t rows, const uint8_t* stage, int s, int lane) {
  using Format = Config::Weights;
  using Ring = TileRing<Config>;
  const auto scales = Format::load_scales(stage + Ring::kScaleOffset + s * Ring::kScaleBytes, lane / 4);
  uint4 words;
#pragma unroll
  for (int step = 0; step < Format::kSlabK / 16; ++step) {
    uint32_t b[4];  // of this step of 16 k and the next
    if (step % 2 == 0) load_matrix_x4(b, rows + step * 32);
    if (step % Format::kSteps == 0) words = Ring::codes(stage, s, step / Format::kSteps, lane);
    uint32_t a[4];
    Format::decode(a, words, scales, step % Format::kSteps);
    multiply_add(sums, a, b[step % 2 * 2], b[step % 2 * 2 + 1]);
  }
}

// Starts the copies of the first groups of a range, as many as the ring holds but one.
__device__ __forceinline__ void fill_ring(NextGroup& next, const Range& range, uint32_t ring, int lane) {
  if (range.begin < range.end) next.start(range.slot, range.slab);
#pragma unroll
  for (int stage = 0; stage < Config::kStages - 1; ++stage) {
    next.fetch_and_advance(range.begin + stage, range.end, ring + stage * TileRing<Config>::kStageBytes, lane);
  }
}

// Multiplies the groups of a range, the first of which are on their way.
__device__ __forceinline__ void multiply_range(float (&sums)[4], NextGroup& next, const Range& range,
                                               const uint8_t* ring, const StagedRows<Config>& staged, const Work& work,
                                               const RowScales<Config>& scales, int lane) {
  using Ring = TileRing<Config>;
  constexpr uint32_t kSlabRowBytes = Config::Weights::kSlabK * 2;
  int slot = range.slot, slab = range.slab, place = 0;
  uint32_t rows = staged.own_address(slot, slab, lane);
  float slot_sums[4] = {};
#pragma unroll 1
  for (int group = range.begin; group < range.end; ++group) {
    wait_copies<Config::kStages - 2>();
    __syncwarp();
    const int free_place = place == 0 ? Config::kStages - 1 : place - 1;  // all lanes have read what was there
    const uint32_t free_stage = smem_address(ring) + free_place * Ring::kStageBytes;
    next.fetch_and_advance(group + Config::kStages - 1, range.end, free_stage, lane);
    const uint8_t* stage = ring + place * Ring::kStageBytes;
    if (slab + Config::kSlabs <= next.n_slabs) {
#pragma unroll
      for (int s = 0; s < Config::kSlabs; ++s) multiply_slab(slot_sums, rows + s * kSlabRowBytes, stage, s, lane);
    } else {
#pragma unroll 1
      for (int s = 0; slab + s < next.n_slabs; ++s) multiply_slab(slot_sums, rows + s * kSlabRowBytes, stage, s, lane);
    }
    place = place == Config::kStages - 1 ? 0 : place + 1;
    slab += Config::kSlabs;
    rows += Config::kSlabs * kSlabRowBytes;
    if (!kCrosses || (slab < next.n_slabs && group + 1 < range.end)) continue;
    // A slot's sum is scaled when its last slab is done, or where this warp's range ends: both parts of a slot that two
    // warps share have the same factor, so it does not matter where the ranges cut.
    const float factor = work.factor[slot] * scales.of(slot);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sums[j] = __fmaf_rn(slot_sums[j], factor, sums[j]);
      slot_sums[j] = 0.0f;
    }
    slab = 0;
    rows = staged.own_address(++slot, 0, lane);
  }
  wait_copies<0>();
  if constexpr (!kCrosses) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = slot_sums[j];
  }
}

// Adds what the ranges of k have summed, in ascending order, for the warps of the first; the others get nothing.
__device__ __forceinline__ void sum_ranges(float (&sums)[4], uint8_t* shared, int tile, int range, int lane) {
  if constexpr (Config::kRanges == 1) return;
  float4* parts = reinterpret_cast<float4*>(shared) + tile * 32 + lane;
  __syncthreads();  // every warp is done with the rows, which the sums now overwrite
  if (range > 0) parts[(range - 1) * Config::kTiles * 32] = make_float4(sums[0], sums[1], sums[2], sums[3]);
  __syncthreads();
  if (range > 0) return;
#pragma unroll
  for (int part = 0; part < Config::kRanges - 1; ++part) {
    const float4 more = parts[part * Config::kTiles * 32];
    sums[0] += more.x;
    sums[1] += more.y;
    sums[2] += more.z;
    sums[3] += more.w;
  }
}

// Where the results of a block go.
struct Results {
  bf16* h;                  // gate-up: H, row 0
  float* parts;             // down from a list: parts, row 0
  bf16* d;                  // down of a walk: D, this token
  int64_t ld;
  int n;
  float alpha_gate;
  float alpha_up;
  float limit;

  // Stores what this lane has of the tile that begins at `first_row`: rows g and g + 8 of tokens 2c and 2c + 1.
  __device__ __forceinline__ void store(const float (&sums)[4], const Work& work, const RowScales<Config>& scales,
                                        int first_row, int lane) const {
    const int g = lane / 4;
    if (first_row + g >= n) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = lane % 4 * 2 + j;
      if (token >= smaller(work.n_tokens, Config::kTokens)) return;
      if constexpr (!Config::kIsDown) {
        // Gate and up rows alternate by eights, so a tile holds both halves of each of its columns.
        const float gate = sums[j] * scales.of(token) * alpha_gate;
        const float up = sums[2 + j] * scales.of(token) * alpha_up;
        store_value(h + work.out_idx[token] * ld + first_row / 2 + g, swiglu(gate, up, limit));
      } else if constexpr (Config::kWalk) {
        store_value(d + first_row + g, sums[j]);
        if (first_row + g + 8 < n) store_value(d + first_row + g + 8, sums[2 + j]);
      } else {
        const float factor = work.factor[token] * scales.of(token);
        float* to = parts + work.out_idx[token] * ld + first_row + g;
        to[0] = sums[j] * factor;
        if (first_row + g + 8 < n) to[8] = sums[2 + j] * factor;
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(Config::kBoundThreads)
    moe_staged(const uint8_t* __restrict__ weights, const bf16* from, unsigned* counters, bf16* h, float* parts,
               bf16* d, const int4* tiles, const int* tile_count, const int* slot_of, const int* experts,
               const float* routing, const float* alpha, const int* m_on_device, int64_t ld_from, int64_t ld_out, int m,
               int n, int k, int top_k, int expert_offset, int n_local, int rows_bytes, float limit) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Work work;
  __shared__ RowScales<Config> scales;
  if constexpr (!Config::kIsDown) wait_for_dependency();
  if constexpr (Config::kSignal == 0) launch_dependents();
  scales.clear();
  const Routing known{experts, routing, alpha, top_k, expert_offset, n_local};
  int4 listed = make_int4(0, 0, 0, 0);
  if constexpr (Config::kWalk) {
    work_from_slots(work, actual_tokens(m_on_device, m), known);
    __syncthreads();
  } else {
    // The list has room for the whole grid: both loads are on their way at once.
    listed = __ldcg(tiles + blockIdx.y);
    if (blockIdx.y >= __ldcg(tile_count)) listed.z = 0;
  }
  // Beyond the list, and for a slot of a foreign expert.
  if ((Config::kWalk ? work.n_tokens : listed.z) == 0) {
    wait_for_dependency();
    return;
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile = warp % Config::kTiles, range = warp / Config::kTiles;
  const int row_tile = blockIdx.x * Config::kTiles + tile;
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int list_expert = listed.x;
  NextGroup next = groups_of(weights, Config::kWalk ? work.expert_idx : &list_expert, row_tile, n, n_slabs, lane);
  const int n_slots = row_tile * kRowTile < n ? kCrosses ? work.n_slots : 1 : 0;  // the last block may lack rows
  const Range own(n_slots, n_slabs, range);
  uint8_t* ring = shared + rows_bytes + warp * TileRing<Config>::kBytes;
  fill_ring(next, own, smem_address(ring), lane);
  if constexpr (!Config::kWalk) {
    work_from_list(work, listed, slot_of, known);
    __syncthreads();
  }
  // Down's alpha is in the factors. Loaded now, so that nobody waits for it at the end.
  const float* gate_up = alpha + 2 * (Config::kIsDown ? 0 : next.expert_idx[0]);
  const float alpha_gate = Config::kIsDown ? 1.0f : gate_up[0] * alpha_factor<Config::Weights>();
  const float alpha_up = Config::kIsDown ? 1.0f : gate_up[1] * alpha_factor<Config::Weights>();
  if constexpr (Config::kIsDown) wait_for_dependency();

  const int n_rows = kCrosses ? work.n_slots : smaller(work.n_tokens, Config::kTokens);
  const StagedRows<Config> rows{reinterpret_cast<bf16*>(shared), n_slabs * Config::Weights::kSlabK, k};
  rows.stage(from, ld_from, work.row_idx, n_rows);
  if constexpr (Config::kRounds) rows.round(work.row_idx, work.is_counted, n_rows, scales, counters);
  __syncthreads();
  float sums[4] = {};
  multiply_range(sums, next, own, ring, rows, work, scales, lane);
  if constexpr (Config::kSignal == 3) launch_dependents();
  sum_ranges(sums, shared, tile, range, lane);
  if (range > 0) return;
  const Results results{h, parts, d + blockIdx.y * ld_out, ld_out, n, alpha_gate, alpha_up, limit};
  results.store(sums, work, scales, row_tile * kRowTile, lane);
}
