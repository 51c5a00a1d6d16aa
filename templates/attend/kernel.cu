$#-
  op: src/kernels/runner/attend.rs   arch: templates/arch/   (tokens, splits and pages are run-time arguments)
-#$
// Generated from templates/attend for ${ arch.name }$. Do not edit.
//
// attend: O[t, h, :] = rotated back(sum_j p_j * K_j) with p = softmax_j(Q . K_j / sqrt(head_dim)) and a sink in its
// denominator; Q is q[t, h] over its root mean square, its end rotated, in BF16; K are the keys of token t: its window,
// then its compressed entries. A key is its own value.
//
//   operand     shape                        in memory                         written / read
//   q           [m, heads, head_dim]         BF16, before norm and rotation    read once by each split
//   kv_step     [m, head_dim]                BF16, keys of this step           gathered by rows
//   kv_ring     [slots, window, head_dim]    BF16, position p in p % window    gathered by rows
//   pool        [pages, 64, head_dim]        BF16, compressed entries          gathered by rows
//   table       [slots, max_pages]           int32, pages of entry w / 64      read for each key
//   picks       [m, top_k]                   int32, entries of a list          read for each key
//   sinks       [heads]                      f32                               read at the end
//   rope        [positions, rope_dim / 2]    f32 pairs (cos, sin)              read first and at the end
//   positions, sequences    [m]              int32, of each token              read first, before the wait: kAsksEarly
//   step_start, first_row   [slots]          int32, position and row of the first token of a sequence in the step
//   o           [m, heads, head_dim]         BF16                              written (one split)
//   workspace   [splits, m, heads, head_dim] f32 sums, then (maximum, sum)     written (several splits)
//   mix         [m, 20]                      f32, post[4] C[4][4]              C balanced in place (kBalances)
//
//   block = 8 warps, one token, kHeadTile heads, a range of key tiles; grid = (tokens, head tiles, splits)
//
// With kBalances one more layer of blocks finishes the mixing matrices that templates/hc_pre has left: they are used
// behind the sublayer, and a short step has SMs to spare here.
//
//   keys    | gather tile i + 1 (cp.async) ......................................... |
//   block   | first Q from q | S = Q K' | maxima | P = 2^(S - max), sums | rescale, O += P K |
//
//   shared memory   Q, two tiles of K, P, for each head the maxima and sums of parts of a tile, a factor, a maximum
//   barriers        tile has arrived; maxima written; P and factors written
//
// For S a warp has 16 heads and some keys of the tile over all columns, for O all heads and its own columns.
// Exactness: f32 sums, P rounded to BF16, one rounding of O. The order of every sum follows from the position and the
// splits: neither the batch nor kHeadTile changes a bit. NaN in a query or key reaches O.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "arch/matrix.cuh"
#include "arch/matrix_transposed.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "arch/reciprocal.cuh"
#include "lib/reciprocal.cuh"
#include "lib/sinkhorn.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"
#include "lib/rotary.cuh"
#include "lib/bucket.cuh"
#include "lib/step_arrays.cuh"
#include "lib/pieces.cuh"
#include "lib/attended.cuh"
#include "lib/attention_block.cuh"
#include "lib/head_norm.cuh"

struct Config {
  static constexpr Compressed kCompressed = ${ op.compressed }$;
  static constexpr int kHeads = ${ op.heads }$;
  static constexpr int kHeadDim = ${ op.head_dim }$;
  static constexpr int kRopeDim = ${ op.rope_dim }$;          // last columns, rotated
  static constexpr float kNormEpsilon = ${ op.norm_epsilon }$;
  static constexpr int kWindow = ${ op.window }$;
  static constexpr int kRatio = ${ op.ratio }$;               // tokens of an entry
  static constexpr int kTopK = ${ op.top_k }$;                // length of a list
  static constexpr int kPageEntries = ${ op.page_entries }$;
  static constexpr int kHeadTile = ${ op.head_tile }$;        // heads of a block
  static constexpr int kKeyTile = ${ op.key_tile }$;          // keys fetched together
  static constexpr bool kIsPartial = ${ op.is_partial }$;     // several splits
  static constexpr bool kBalances = ${ op.balances }$;
  static constexpr int kRounds = ${ op.rounds }$;             // of the balance
  static constexpr float kHcEpsilon = ${ op.hc_epsilon }$;
  static constexpr int kSmemBytes = ${ op.smem_bytes }$;
};

using Shape = AttentionBlock<Config>;
constexpr int kPieces = Shape::kPieces;
constexpr int kHeadWarps = Shape::kHeadWarps;
// A step of many tokens, whose blocks have more heads, has neither the registers nor the need to ask for the place of a
// token before the wait.
constexpr bool kAsksEarly = Config::kHeadTile == 16;
constexpr int kColumnTiles = Config::kHeadDim / 8 / Shape::kWarps;  // 8-column tiles of a warp, for O
static_assert(Config::kHeadDim % 64 == 0 && Config::kHeadTile % 16 == 0 && Config::kRopeDim % 2 == 0, "whole tiles");
static_assert(Shape::kBytes == Config::kSmemBytes, "host and device disagree on shared memory");

// Rows of queries and keys one after the other.
struct Place {
  __device__ __forceinline__ static uint32_t address(uint32_t base, int row, int piece) {
    return piece_address<kPieces>(base, row, piece);
  }
};

// S of 16 heads and a warp's keys of a tile. Every other 16 columns have sums of their own: with few keys a warp has
// one chain of products, and each would wait for the one before.
__device__ __forceinline__ void multiply(Scores<Config>& scores, uint32_t queries, uint32_t keys, int head_warp,
                                         int key_warp, int lane) {
  float(&s)[Shape::kKeyTiles][4] = scores.s;
  float odd[Shape::kKeyTiles][4];
#pragma unroll
  for (int t = 0; t < Shape::kKeyTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[t][i] = odd[t][i] = 0.0f;
  }
#pragma unroll 4
  for (int piece = 0; piece < kPieces; piece += 4) {
    // 32 columns at a time: one load brings the keys' operands of two products.
    uint32_t q[2][4];
    const int head = head_warp * 16 + lane % 16;
    load_matrix_x4(q[0], piece_address<kPieces>(queries, head, piece + lane / 16));
    load_matrix_x4(q[1], piece_address<kPieces>(queries, head, piece + 2 + lane / 16));
#pragma unroll
    for (int t = 0; t < Shape::kKeyTiles; ++t) {
      uint32_t k[4];
      const int key = (key_warp * Shape::kKeyTiles + t) * 8 + lane % 8;
      load_matrix_x4(k, piece_address<kPieces>(keys, key, piece + lane / 8));
      multiply_add(s[t], q[0], k[0], k[1]);
      multiply_add(odd[t], q[1], k[2], k[3]);
    }
  }
#pragma unroll
  for (int t = 0; t < Shape::kKeyTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[t][i] += odd[t][i];
  }
}

// Sums of values: all heads of the block, a warp's own columns.
struct Values {
  float o[kHeadWarps][kColumnTiles][4];

  __device__ __forceinline__ void rescale(const float* factors, int lane) {
#pragma unroll
    for (int h = 0; h < kHeadWarps; ++h) {
      const float upper = factors[h * 16 + lane / 4];
      const float lower = factors[h * 16 + 8 + lane / 4];
      // Maxima settle after a few tiles, and a factor of 1 changes nothing.
      if (!__any_sync(0xFFFFFFFFu, upper != 1.0f || lower != 1.0f)) continue;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        o[h][n][0] *= upper;
        o[h][n][1] *= upper;
        o[h][n][2] *= lower;
        o[h][n][3] *= lower;
      }
    }
  }

  __device__ __forceinline__ void multiply(uint32_t probabilities, uint32_t keys, int warp, int lane) {
#pragma unroll
    for (int step = 0; step < Config::kKeyTile / 32; ++step) {
      // P of 32 keys for all heads stays in registers, so that each value is read once.
      uint32_t p[kHeadWarps][2][4];
#pragma unroll
      for (int h = 0; h < kHeadWarps; ++h) {
        const int head = h * 16 + lane % 16;
        load_matrix_x4(p[h][0], piece_address<Shape::kKeyPieces>(probabilities, head, step * 4 + lane / 16));
        load_matrix_x4(p[h][1], piece_address<Shape::kKeyPieces>(probabilities, head, step * 4 + 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        uint32_t v[4];
        load_matrix_x4_transposed(v, piece_address<kPieces>(keys, step * 32 + lane, warp * kColumnTiles + n));
#pragma unroll
        for (int h = 0; h < kHeadWarps; ++h) {
          multiply_add(o[h][n], p[h][0], v[0], v[1]);
          multiply_add(o[h][n], p[h][1], v[2], v[3]);
        }
      }
    }
  }

  // One row of BF16 for each head, divided by the denominators and rotated back.
  __device__ __forceinline__ void store(bf16* to, const float* inverses, const float2* turns, int n_heads, int warp,
                                        int lane) const {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int column = (warp * kColumnTiles + n) * 8 + lane % 4 * 2;
      const int rotated = column - (Config::kHeadDim - Config::kRopeDim);
      const float2 turn = rotated >= 0 ? turns[rotated / 2] : make_float2(1.0f, 0.0f);
#pragma unroll
      for (int r = 0; r < 2 * kHeadWarps; ++r) {
        const int head = r * 8 + lane / 4;
        if (head >= n_heads) continue;
        float2 pair = make_float2(o[r / 2][n][r % 2 * 2] * inverses[head], o[r / 2][n][r % 2 * 2 + 1] * inverses[head]);
        if (rotated >= 0) pair = rotated_back(pair, turn);
        *reinterpret_cast<uint32_t*>(to + head * Config::kHeadDim + column) = pair_from_floats(pair.x, pair.y);
      }
    }
  }

  // The sums as they are, for attend_combine.
  __device__ __forceinline__ void store_partial(float* to, int n_heads, int warp, int lane) const {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int column = (warp * kColumnTiles + n) * 8 + lane % 4 * 2;
#pragma unroll
      for (int r = 0; r < 2 * kHeadWarps; ++r) {
        const int head = r * 8 + lane / 4;
        if (head >= n_heads) continue;
        const float* pair = &o[r / 2][n][r % 2 * 2];
        *reinterpret_cast<float2*>(to + head * Config::kHeadDim + column) = make_float2(pair[0], pair[1]);
      }
    }
  }
};

// What a block has summed over its range of tiles.
struct Block {
  Values values = {};
  Scores<Config> scores;
  float sum = 0.0f;  // of probabilities, in thread h for head h
  const float2* turns;  // of the token's position

  __device__ __forceinline__ void run(uint8_t* shared, const Keys<Config>& keys, TileRange range,
                                      const HeadTurns<Config>& early_turns, int warp, int lane) {
    const uint32_t smem = smem_address(shared);
    const int head_warp = warp % kHeadWarps;
    const int key_warp = warp / kHeadWarps;
    scores.running[0] = scores.running[1] = -__int_as_float(0x7F800000);
    // Of a short range nothing is looked up beyond its end: it would be one more wait.
    const auto key_of = [&](int tile) {
      const int key = tile * Config::kKeyTile + warp * Shape::kFetched + lane % Shape::kFetched;
      return tile < range.end ? keys.at(key) : nullptr;
    };
    fetch_keys<Config, Place>(smem + Shape::kKeysAt, key_of(range.begin), warp, lane);
    commit_copies();
    // Addresses take two dependent loads: they are looked up a tile ahead of their copies.
    const bf16* next = key_of(range.begin + 1);
    wait_copies<1>();  // the queries have arrived, the keys may be on their way
    if constexpr (kAsksEarly) {
      normalise_heads<Config, Place, 2>(shared, early_turns, warp, lane);
    } else {
      normalise_queries<Config, Place>(shared, turns, warp, lane);
    }
    for (int tile = range.begin; tile < range.end; ++tile) {
      const int buffer = (tile - range.begin) & 1;
      const uint32_t tile_keys = smem + Shape::kKeysAt + buffer * Shape::kTileBytes;
      // The copies of this tile were started while the one before was multiplied.
      wait_copies<0>();
      __syncthreads();  // the tile has arrived, and nobody reads the other one or P any more
      if (tile + 1 < range.end) {
        fetch_keys<Config, Place>(smem + Shape::kKeysAt + (buffer ^ 1) * Shape::kTileBytes, next, warp, lane);
        next = key_of(tile + 2);
      }
      commit_copies();
      if (key_warp < Shape::kKeyWarps) {
        multiply(scores, smem, tile_keys, head_warp, key_warp, lane);
        const int n_left = keys.attended.n_keys - tile * Config::kKeyTile;
        scores.scale(reinterpret_cast<float*>(shared + Shape::kMaximaAt), n_left, head_warp, key_warp, lane);
      }
      __syncthreads();  // maxima are written
      if (key_warp < Shape::kKeyWarps) scores.exponentiate(shared, head_warp, key_warp, lane);
      __syncthreads();  // P, sums and factors are written
      const float* factors = reinterpret_cast<const float*>(shared + Shape::kFactorsAt);
      if (threadIdx.x < Config::kHeadTile) sum = with_tile<Config>(sum, shared, threadIdx.x);
      values.rescale(factors, lane);
      values.multiply(smem + Shape::kProbabilitiesAt, tile_keys, warp, lane);
    }
    if (key_warp == 0 && lane % 4 == 0) {
      float* running = reinterpret_cast<float*>(shared + Shape::kRunningAt);
      running[head_warp * 16 + lane / 4] = scores.running[0];
      running[head_warp * 16 + 8 + lane / 4] = scores.running[1];
    }
    __syncthreads();  // maxima are written, factors are read
  }
};

extern "C" __global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    attend(const bf16* q, const bf16* kv_step, const bf16* kv_ring, const bf16* pool, const int* table,
           const int* picks, const float* sinks, const float2* rope, const int* positions, const int* sequences,
           const int* step_start, const int* first_row, bf16* o, float* workspace, const int* m_on_device, int m,
           int max_pages, float* mix) {
  extern __shared__ __align__(128) uint8_t shared[];
  launch_dependents();
  const int token = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (!kAsksEarly) wait_for_dependency();
  const bool is_there = token < actual_tokens(m_on_device, m);
  // A row that is no token has any number there, which must not become an address.
  const int position = !kAsksEarly ? positions[token] : is_there ? of_step(positions, token) : 0;
  const int slot = !kAsksEarly ? sequences[token] : is_there ? of_step(sequences, token) : 0;
  const int row_of_start = kAsksEarly ? of_step(first_row, slot) : 0;
  const int start = kAsksEarly ? of_step(step_start, slot) : 0;
  const float2* turns = rope + int64_t{position} * (Config::kRopeDim / 2);
  const HeadTurns<Config> early_turns(kAsksEarly ? turns : rope, lane);
  if constexpr (kAsksEarly) wait_for_dependency();
  if (!is_there) return;
  const int splits = gridDim.z - (Config::kBalances ? 1 : 0);
  if (Config::kBalances && blockIdx.z == splits) {
    if (blockIdx.y == 0 && warp == 0) balance_mix<Config>(mix + int64_t{token} * 20);
    return;
  }
  const Attended<Config> attended(position);
  const TileRange range = attended.range(blockIdx.z, splits);
  if (range.begin == range.end) return;  // attend_combine knows
  const Keys<Config> keys{attended,
                  kv_step + int64_t{kAsksEarly ? row_of_start : first_row[slot]} * Config::kHeadDim,
                  kv_ring + int64_t{slot} * Config::kWindow * Config::kHeadDim,
                  pool,
                  table + int64_t{slot} * max_pages,
                  picks + int64_t{token} * Config::kTopK,
                  kAsksEarly ? start : step_start[slot]};
  const int first_head = blockIdx.y * Config::kHeadTile;
  const int n_heads = smaller(Config::kHeadTile, Config::kHeads - first_head);
  const int64_t row = int64_t{token} * Config::kHeads + first_head;
  fetch_queries<Config, Place>(smem_address(shared), q + row * Config::kHeadDim, first_head, warp, lane);
  commit_copies();
  Block block;
  block.turns = turns;
  block.run(shared, keys, range, early_turns, warp, lane);
  const float* running = reinterpret_cast<const float*>(shared + Shape::kRunningAt);
  if constexpr (Config::kIsPartial) {
    const int64_t rows = int64_t{m} * Config::kHeads;
    const int64_t of_split = blockIdx.z * rows + row;
    block.values.store_partial(workspace + of_split * Config::kHeadDim, n_heads, warp, lane);
    if (threadIdx.x < n_heads) {
      float2* statistics = reinterpret_cast<float2*>(workspace + splits * rows * Config::kHeadDim);
      statistics[of_split + threadIdx.x] = make_float2(running[threadIdx.x], block.sum);
    }
  } else {
    float* inverses = reinterpret_cast<float*>(shared + Shape::kFactorsAt);
    if (threadIdx.x < n_heads) {
      inverses[threadIdx.x] = inverse_of(block.sum, sinks[first_head + threadIdx.x], running[threadIdx.x]);
    }
    __syncthreads();
    block.values.store(o + row * Config::kHeadDim, inverses, turns, n_heads, warp, lane);
  }
}
