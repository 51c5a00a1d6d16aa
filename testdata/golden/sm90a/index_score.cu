#line 4 "templates/index_score/kernel.cu"
// Generated from templates/index_score for sm90a. Do not edit.
//
// index_score: scores[t, w] = sum_h wt[t, h] * relu(qi[t, h] . ki[w]) / sqrt(heads * head_dim) for the entries w that
// token t sees. Tokens that see at most top_k entries need no scores and are left out.
//
//   operand   shape                       in memory                      written / read
//   qi        [m, heads, head_dim]        BF16                           read once for each tile of entries
//   wt        [m, heads]                  f32, stride ld_wt              likewise
//   pool      [pages, 64, head_dim]       BF16, keys of entries          gathered by rows, once for each token tile
//   table     [slots, max_pages]          int32, pages of entry w / 64   read with the keys
//   positions, sequences   [m]            int32, of each token           read first
//   scores    [m, capacity]               f32                            written where an entry is visible
//
//   block = 4 warps, kTokens tokens, 128 entries; grid = (token tiles, entry tiles)
//
//   keys    | gather, to registers; again only when the sequence changes                     |
//   block   | fetch queries of token i + 1 (cp.async), heads x keys of token i, sum over heads | ...
//
//   shared memory   keys of the tile, queries of two tokens
//   barriers        queries (and keys) have arrived; keys are in registers
//
// A warp has 32 entries and all heads: every warp reads all queries from shared memory, which with 16 entries each took
// longer than the products. Exactness: f32 sums over heads in a fixed order: a lane's own heads ascending,
// then across lanes; NaN passes through the relu.
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
#line 29 "templates/index_score/kernel.cu"
#line 1 "templates/arch/sm80/async_copy.cuh"
// Copies from global to shared memory that run while the thread goes on.

// cp.async.cg.shared.global 16: 16 bytes past L1; the L2 is asked for the 256 bytes around them.
__device__ __forceinline__ void copy_async_16(uint32_t smem_to, const void* global_from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(smem_to), "l"(global_from) : "memory");
}

// The same, reading only `bytes` (0 to 16) and filling the rest with zeros; nothing is read when it is 0.
__device__ __forceinline__ void copy_async_16_or_zeros(uint32_t smem_to, const void* global_from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_to), "l"(global_from), "r"(bytes) : "memory");
}

// cp.async.commit_group: closes the group of all copies since the last one.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group: waits until at most kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#line 30 "templates/index_score/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 31 "templates/index_score/kernel.cu"
#line 1 "templates/arch/sm80/matrix.cuh"
// Warp-level matrix instructions. Fragments: lane = 4 * g + c; see lib/format.cuh for the operands they are made of.

// ldmatrix.x4: four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&to)[4], uint32_t smem_from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(smem_from)
               : "memory");
}

// mma.sync m16n8k16: d += a (16 x 16, BF16) * b (16 x 8, BF16), f32 sums.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#line 32 "templates/index_score/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 33 "templates/index_score/kernel.cu"
#line 1 "templates/lib/pieces.cuh"
// Rows of BF16 in shared memory as 16-byte pieces, placed so that ldmatrix meets no bank conflict.

// Address of piece `piece` of row `row` in an array at `base` with kPieces pieces a row. Pieces change places within a
// row by a pattern of the row: eight consecutive rows then lie in different banks.
template <int kPieces>
__device__ __forceinline__ uint32_t piece_address(uint32_t base, int row, int piece) {
  static_assert(kPieces == 4 || kPieces % 8 == 0, "rows of 64 bytes, or of a multiple of 128");
  const int pattern = kPieces == 4 ? row >> 1 & 3 : row & 7;
  return base + (row * kPieces + (piece ^ pattern)) * 16;
}
#line 34 "templates/index_score/kernel.cu"

struct Config {
  static constexpr int kHeads = 64;
  static constexpr int kHeadDim = 128;
  static constexpr int kRatio = 4;               // tokens of an entry
  static constexpr int kTopK = 512;
  static constexpr int kPageEntries = 64;
  static constexpr int kTokens = 1;             // tokens of a block
  static constexpr int kSmemBytes = 65536;
};

constexpr int kEntryTile = 128;
constexpr int kEntryTiles = 4;  // 8-entry tiles of a warp
constexpr int kWarpEntries = kEntryTiles * 8;
constexpr int kThreads = kEntryTile / kWarpEntries * 32;
constexpr int kTilePages = kEntryTile / Config::kPageEntries;
constexpr int kPieces = Config::kHeadDim / 8;  // 16-byte pieces of a key or a query
constexpr int kHeadTiles = Config::kHeads / 16;
constexpr int kKeyBytes = kEntryTile * Config::kHeadDim * 2;
constexpr int kQueryBytes = Config::kHeads * Config::kHeadDim * 2;
static_assert(kKeyBytes + 2 * kQueryBytes == Config::kSmemBytes, "host and device disagree on shared memory");
static_assert(Config::kHeadDim % 32 == 0 && Config::kHeads % 16 == 0, "whole tiles");
static_assert(kEntryTile % Config::kPageEntries == 0, "a tile of entries has whole pages");

// The tokens of one block that need scores in its tile of entries.
struct Tokens {
  const int* positions;
  const int* sequences;
  int end;          // of the block's tokens
  int first_entry;

  __device__ __forceinline__ int visible(int token) const { return (positions[token] + 1) / Config::kRatio; }

  // The first from `token` on, or the end.
  __device__ __forceinline__ int next(int token) const {
    while (token < end && visible(token) <= larger(Config::kTopK, first_entry)) ++token;
    return token;
  }

  // Entries that any token of the block sees of the sequence of `token`: what its keys are read up to.
  __device__ __forceinline__ int visible_to_sequence(int token) const {
    int last = token;
    while (last + 1 < end && sequences[last + 1] == sequences[token]) ++last;
    return visible(last);
  }
};

// Starts the copies of the tile's keys of a sequence; entries that nobody sees are zeros.
__device__ __forceinline__ void fetch_keys(uint32_t smem, const bf16* pool, const int* pages, int first, int visible) {
  // Pages are looked up once and not for every key: the copies then wait for nothing.
  const bf16* page_keys[kTilePages];
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
    const int entry = first + page * Config::kPageEntries;
    const int64_t number = entry < visible ? pages[entry / Config::kPageEntries] : 0;
    page_keys[page] = pool + number * (Config::kPageEntries * Config::kHeadDim);
  }
#pragma unroll
  for (int page = 0; page < kTilePages; ++page) {
#pragma unroll 4
    for (int i = threadIdx.x; i < Config::kPageEntries * kPieces; i += kThreads) {
      const int of_page = i / kPieces, of_tile = page * Config::kPageEntries + of_page;
      const bool is_there = first + of_tile < visible;
      const bf16* from = page_keys[page] + of_page * Config::kHeadDim + i % kPieces * 8;
      copy_async_16_or_zeros(piece_address<kPieces>(smem, of_tile, i % kPieces), from, is_there ? 16 : 0);
    }
  }
}

__device__ __forceinline__ void fetch_queries(uint32_t smem, const bf16* qi) {
#pragma unroll 4
  for (int i = threadIdx.x; i < Config::kHeads * kPieces; i += kThreads) {
    copy_async_16(piece_address<kPieces>(smem, i / kPieces, i % kPieces), qi + i * 8);
  }
}

// A warp's 32 keys as right operands.
struct Keys {
  uint32_t k[kEntryTiles][kPieces / 4][4];

  __device__ __forceinline__ void load(uint32_t smem, int warp, int lane) {
#pragma unroll
    for (int n = 0; n < kEntryTiles; ++n) {
#pragma unroll
      for (int i = 0; i < kPieces / 4; ++i) {
        const int entry = warp * kWarpEntries + n * 8 + lane % 8;
        load_matrix_x4(k[n][i], piece_address<kPieces>(smem, entry, i * 4 + lane / 8));
      }
    }
  }
};

// Weights of a lane's heads: g and g + 8 of each tile of 16, lane = 4 * g + c.
struct Weights {
  float w[kHeadTiles][2];

  __device__ __forceinline__ void load(const float* wt, int lane) {
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h) {
      w[h][0] = wt[h * 16 + lane / 4];
      w[h][1] = wt[h * 16 + 8 + lane / 4];
    }
  }
};

// Scores of a warp's entries for one token; every lane holds those of its columns.
__device__ __forceinline__ void score(float (&sums)[kEntryTiles][2], uint32_t queries, const Keys& keys,
                                      const Weights& weights, int lane) {
  const float factor = 1.0f / sqrtf(static_cast<float>(Config::kHeads * Config::kHeadDim));
#pragma unroll
  for (int n = 0; n < kEntryTiles; ++n) sums[n][0] = sums[n][1] = 0.0f;
#pragma unroll
  for (int h = 0; h < kHeadTiles; ++h) {
    float s[kEntryTiles][4] = {};
#pragma unroll
    for (int i = 0; i < kPieces / 4; ++i) {
      uint32_t q[2][4];
      load_matrix_x4(q[0], piece_address<kPieces>(queries, h * 16 + lane % 16, i * 4 + lane / 16));
      load_matrix_x4(q[1], piece_address<kPieces>(queries, h * 16 + lane % 16, i * 4 + 2 + lane / 16));
#pragma unroll
      for (int n = 0; n < kEntryTiles; ++n) {
        multiply_add(s[n], q[0], keys.k[n][i][0], keys.k[n][i][1]);
        multiply_add(s[n], q[1], keys.k[n][i][2], keys.k[n][i][3]);
      }
    }
#pragma unroll
    for (int n = 0; n < kEntryTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float positive = s[n][i] < 0.0f ? 0.0f : s[n][i];
        sums[n][i % 2] = __fmaf_rn(weights.w[h][i / 2] * factor, positive, sums[n][i % 2]);
      }
    }
  }
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < 2 * kEntryTiles; ++i) {
      sums[i / 2][i % 2] += __shfl_xor_sync(0xFFFFFFFFu, sums[i / 2][i % 2], distance);
    }
  }
}

// Writes a warp's scores of one token, those of them that are visible. All groups of four lanes have the same sums: the
// first four groups write a tile of entries each, two neighbours a lane.
__device__ __forceinline__ void store_scores(float* row, const float (&sums)[kEntryTiles][2], int first_entry,
                                             int visible, int lane) {
  static_assert(kEntryTiles == 4, "a tile to each of the first four groups");
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // Chosen by conditions: a place that depends on the lane would send the sums to memory.
    const float low = lane < 4 ? sums[0][i] : sums[1][i];
    const float high = lane < 12 ? sums[2][i] : sums[3][i];
    pair[i] = lane < 8 ? low : high;
  }
  const int entry = first_entry + lane * 2;
  if (lane < 16 && entry < visible) row[entry] = pair[0];
  if (lane < 16 && entry + 1 < visible) row[entry + 1] = pair[1];
}

extern "C" __global__ void __launch_bounds__(kThreads, 3)
    index_score(const bf16* qi, const float* wt, const bf16* pool, const int* table, const int* positions,
                const int* sequences, float* scores, const int* m_on_device, int64_t ld_wt, int m, int max_pages,
                int capacity) {
  extern __shared__ __align__(128) uint8_t shared[];
  launch_dependents();
  wait_for_dependency();
  const uint32_t smem = smem_address(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int first = blockIdx.x * Config::kTokens;
  const int end = smaller(first + Config::kTokens, actual_tokens(m_on_device, m));
  const Tokens tokens{positions, sequences, end, static_cast<int>(blockIdx.y) * kEntryTile};
  int token = tokens.next(first);
  if (token >= end) return;
  const auto fetch_keys_of = [&](int of) {
    const int* pages = table + int64_t{sequences[of]} * max_pages;
    fetch_keys(smem, pool, pages, tokens.first_entry, tokens.visible_to_sequence(of));
  };
  fetch_keys_of(token);
  fetch_queries(smem + kKeyBytes, qi + int64_t{token} * (Config::kHeads * Config::kHeadDim));
  commit_copies();
  Keys keys;
  Weights next_weights;
  next_weights.load(wt + token * ld_wt, lane);
  bool are_new = true;  // the keys in shared memory are not in registers yet
  for (int buffer = 0; token < end; buffer ^= 1) {
    const Weights weights = next_weights;
    wait_copies<0>();
    __syncthreads();  // queries and keys have arrived, and nobody reads the other queries any more
    const int next = tokens.next(token + 1);
    // Keys stay in registers as long as the sequence is the same: a token then costs its queries only.
    if (are_new) keys.load(smem, warp, lane);
    are_new = next < end && sequences[next] != sequences[token];
    if (are_new) {
      __syncthreads();  // everyone has the old keys in registers
      fetch_keys_of(next);
    }
    if (next < end) {
      fetch_queries(smem + kKeyBytes + (buffer ^ 1) * kQueryBytes,
                    qi + int64_t{next} * (Config::kHeads * Config::kHeadDim));
      next_weights.load(wt + next * ld_wt, lane);
    }
    commit_copies();
    float sums[kEntryTiles][2];
    score(sums, smem + kKeyBytes + buffer * kQueryBytes, keys, weights, lane);
    store_scores(scores + int64_t{token} * capacity, sums, tokens.first_entry + warp * kWarpEntries,
                 smaller(tokens.visible(token), capacity), lane);
    token = next;
  }
}
