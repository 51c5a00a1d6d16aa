#line 4 "templates/moe_schedule/kernel.cu"
// Generated from templates/moe_schedule for sm120a. Do not edit.
//
// moe_schedule: sorts the slots of a step by expert and cuts each expert's slots into tiles for both grouped GEMMs.
//
//   operand      shape                in memory                         written / read
//   experts      [m, top_k]           int32, -1 or foreign: skipped     read, twice
//   begin        [n_local + 1]        int32, first position of expert   written
//   slot_of      [m * top_k]          int32, position -> slot           written; slot = token * top_k + s
//   up_tiles     [tile_counts[0]]     int4 expert, position, count, 0   written; at most up.most slots each
//   down_tiles   [tile_counts[1]]     the same with down.most           written
//   tile_counts  [2]                  int32, tiles of gate-up and down  written
//
//   block = kWarps warps, which place the slots of the block's own experts; grid = as many blocks as share the experts
//
//   count      each warp walks its own run of all slots, 32 at a time: it adds to every expert's total, and counts
//              those of its block's experts, lanes with one expert together (match.any)
//   scan       per own expert over the warps, and over all experts, one a thread: positions and tiles
//   tiles      those of the block's own experts, one a thread, which finds its expert by bisecting their first tiles
//   place      each warp walks its run again and writes the slots of the block's own experts to their positions
//
// Gate-up waits for all of it, and with few tokens that is latency alone: so no warp takes one expert after the other.
//
// Every block reads all slots and makes all totals, so no block waits for another, and one launch does.
//
//   shared memory   per expert: total, begin, first up tile, first down tile; then counts [kWarps][own experts];
//                   static: each warp's sums of positions and of both kinds of tiles, for the scan
//   barriers        totals and counts are zero; slots are counted; in the scan the warps' sums are there, and have been
//                   read; positions and tiles are there; inside a warp __syncwarp around its counts
//
// An expert's slots are cut into as few tiles as hold them, of nearly equal counts, each but the last a multiple of
// `step`: a count of 200 with most = 128 and step = 16 gives 96 and 104, not 128 and 72, so that no tile is narrow.
//
// The order is stable: slots of an expert stand in ascending order, whatever ran when.
// After: the counting sort by warps follows CUB's stable radix rank in idea.
#line 1 "templates/lib/words.cuh"
// Machine words and the small arithmetic of every kernel: names that NVRTC does not bring along without headers.

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

// The bits of a BF16 value.
using bf16 = uint16_t;

__device__ __forceinline__ float float_of(bf16 value) { return __uint_as_float(uint32_t{value} << 16); }

// Address of shared memory as the 32-bit number that PTX takes.
__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__host__ __device__ constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_divide(a, b) * b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
#line 39 "templates/moe_schedule/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 40 "templates/moe_schedule/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 41 "templates/moe_schedule/kernel.cu"

struct Config {
  static constexpr int kWarps = 8;
  static constexpr int kAhead = 4;  // loads of a warp on their way
};

// How the slots of an expert are cut for one of the GEMMs.
struct Cut {
  int most;  // slots of a tile, a multiple of step
  int step;

  __device__ __forceinline__ int tiles(int count) const { return ceil_divide(count, most); }
  // First slot of tile `tile` of `n_tiles`, in whole steps.
  __device__ __forceinline__ int begin(int tile, int n_tiles, int count) const {
    return tile * ceil_divide(count, step) / n_tiles * step;
  }
};

// Exclusive sums over the experts, with the totals at the end.
struct Places {
  int* begin;       // [n_local + 1] positions
  int* up_first;    // [n_local + 1] tiles
  int* down_first;  // [n_local + 1]
};

// Positions and tiles of one expert, or sums of them.
struct Extent {
  int rows;
  int up;
  int down;

  __device__ __forceinline__ Extent plus(const Extent& more) const {
    return {rows + more.rows, up + more.up, down + more.down};
  }
};

// Makes the exclusive sums, an expert a thread; all threads of the block take part.
__device__ __forceinline__ void scan_experts(const int* counts, const Places& places, int n_local, Cut up_cut,
                                             Cut down_cut) {
  __shared__ Extent warp_sums[Config::kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Extent carry = {0, 0, 0};
  for (int base = 0; base < n_local; base += Config::kWarps * 32) {
    const int expert = base + threadIdx.x;
    const int count = expert < n_local ? counts[expert] : 0;
    const Extent own = {count, up_cut.tiles(count), down_cut.tiles(count)};
    Extent sum = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const Extent more = {__shfl_up_sync(~0u, sum.rows, step), __shfl_up_sync(~0u, sum.up, step),
                           __shfl_up_sync(~0u, sum.down, step)};
      if (lane >= step) sum = sum.plus(more);
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    const Extent theirs = lane < Config::kWarps ? warp_sums[lane] : Extent{0, 0, 0};
    const Extent before = lane < warp ? theirs : Extent{0, 0, 0};
    const Extent prefix = {__reduce_add_sync(~0u, before.rows), __reduce_add_sync(~0u, before.up),
                           __reduce_add_sync(~0u, before.down)};
    const Extent at = carry.plus(prefix).plus(sum);
    if (expert < n_local) {
      places.begin[expert] = at.rows - own.rows;
      places.up_first[expert] = at.up - own.up;
      places.down_first[expert] = at.down - own.down;
    }
    carry = carry.plus({__reduce_add_sync(~0u, theirs.rows), __reduce_add_sync(~0u, theirs.up),
                        __reduce_add_sync(~0u, theirs.down)});
    __syncthreads();  // the sums have been read
  }
  if (threadIdx.x == 0) {
    places.begin[n_local] = carry.rows;
    places.up_first[n_local] = carry.up;
    places.down_first[n_local] = carry.down;
  }
}

// Writes the tiles of the experts from `expert` to `end_expert`, one a thread.
__device__ __forceinline__ void write_tiles(int4* tiles, const int* first, const int* begin, const int* counts, Cut cut,
                                            int expert, int end_expert) {
  const int end = first[end_expert];
  for (int tile = first[expert] + threadIdx.x; tile < end; tile += Config::kWarps * 32) {
    // The last expert whose first tile is no later: those without a slot begin where the next one does.
    int low = expert, high = end_expert;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first[middle] <= tile ? low : high) = middle;
    }
    const int n_tiles = first[low + 1] - first[low], place = tile - first[low], count = counts[low];
    const int at = cut.begin(place, n_tiles, count);
    const int next = smaller(cut.begin(place + 1, n_tiles, count), count);
    tiles[tile] = make_int4(low, begin[low] + at, next - at, 0);
  }
}

// The slots of one warp, and the experts of its block.
struct Run {
  const int* experts;
  int expert_offset;
  int n_local;
  int begin;
  int end;
  int first_own;
  int n_own;
  int* counts;  // of this warp, for each own expert
  int lane;

  // Calls see(expert) for each local slot, and visit(slot, expert, rank among the lanes with that expert) for each slot
  // of an own expert, and counts it after that.
  template <class See, class Visit>
  __device__ __forceinline__ void walk(See see, Visit visit) const {
    for (int base = begin; base < end; base += 32 * Config::kAhead) {
      int ahead[Config::kAhead];
#pragma unroll
      for (int i = 0; i < Config::kAhead; ++i) {
        const int slot = base + i * 32 + lane;
        ahead[i] = slot < end ? experts[slot] - expert_offset : -1;
      }
#pragma unroll
      for (int i = 0; i < Config::kAhead; ++i) {
        if (base + i * 32 >= end) break;
        const int expert = ahead[i];
        if (expert >= 0 && expert < n_local) see(expert);
        const bool is_own = expert >= first_own && expert < first_own + n_own;
        if (!__any_sync(~0u, is_own)) continue;
        const unsigned peers = __match_any_sync(~0u, is_own ? expert : -1);
        const int rank = __popc(peers & ((1u << lane) - 1));
        if (is_own) visit(base + i * 32 + lane, expert, rank);
        __syncwarp();
        if (is_own && rank == 0) counts[expert - first_own] += __popc(peers);
        __syncwarp();
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32, 1)
    moe_schedule(const int* experts, int* begin_out, int* slot_of, int4* up_tiles, int4* down_tiles, int* tile_counts,
                 const int* m_on_device, int m, int top_k, int expert_offset, int n_local, int up_tokens, int up_step,
                 int down_tokens, int down_step) {
  extern __shared__ __align__(16) uint8_t shared[];
  launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Cut up_cut{up_tokens, up_step};
  const Cut down_cut{down_tokens, down_step};
  const int first_own = int64_t{n_local} * blockIdx.x / gridDim.x;
  const int n_own = int64_t{n_local} * (blockIdx.x + 1) / gridDim.x - first_own;
  int* totals = reinterpret_cast<int*>(shared);          // [n_local]
  int* begin = totals + n_local;
  const Places places{begin, begin + n_local + 1, begin + 2 * (n_local + 1)};
  int* counts = begin + 3 * (n_local + 1);               // [kWarps][n_own]
  constexpr int kThreads = Config::kWarps * 32;
  for (int i = threadIdx.x; i < n_local; i += kThreads) totals[i] = 0;
  for (int i = threadIdx.x; i < Config::kWarps * n_own; i += kThreads) counts[i] = 0;
  wait_for_dependency();
  const int n_slots = actual_tokens(m_on_device, m) * top_k;
  const int run_begin = int64_t{n_slots} * warp / Config::kWarps;
  const int run_end = int64_t{n_slots} * (warp + 1) / Config::kWarps;
  int* own = counts + warp * n_own;
  __syncthreads();

  const Run run{experts, expert_offset, n_local, run_begin, run_end, first_own, n_own, own, lane};
  // Whole numbers: the order of the additions does not matter.
  run.walk([&](int expert) { atomicAdd(totals + expert, 1); }, [](int, int, int) {});
  __syncthreads();
  for (int expert = threadIdx.x; expert < n_own; expert += kThreads) {
    int sum = 0;
    for (int w = 0; w < Config::kWarps; ++w) {
      const int count = counts[w * n_own + expert];
      counts[w * n_own + expert] = sum;
      sum += count;
    }
  }
  scan_experts(totals, places, n_local, up_cut, down_cut);
  __syncthreads();
  if (blockIdx.x == 0) {
    for (int expert = threadIdx.x; expert <= n_local; expert += kThreads) begin_out[expert] = begin[expert];
    if (threadIdx.x < 2) tile_counts[threadIdx.x] = (threadIdx.x == 0 ? places.up_first : places.down_first)[n_local];
  }
  write_tiles(up_tiles, places.up_first, begin, totals, up_cut, first_own, first_own + n_own);
  write_tiles(down_tiles, places.down_first, begin, totals, down_cut, first_own, first_own + n_own);
  run.walk([](int) {}, [&](int slot, int expert, int rank) {
    slot_of[begin[expert] + own[expert - first_own] + rank] = slot;
  });
}
