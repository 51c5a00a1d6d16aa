$#-
  op: src/kernels/runner/attend.rs   arch: templates/arch/   (tokens and pages are run-time arguments)
-#$
// Generated from templates/attend_wgmma for ${ arch.name }$. Do not edit.
//
// attend_wgmma: O[t, h, :] = rotated back(sum_j p_j * K_j) as in templates/attend, for one split: both products on
// wgmma, which needs half of the shared-memory reads. 64 heads, 64 keys, 512 columns.
//
//   operand     shape                        in memory                         written / read
//   q           [m, heads, head_dim]         BF16, before norm and rotation    read once
//   kv_step     [m, head_dim]                BF16, keys of this step           gathered by rows
//   kv_ring     [slots, window, head_dim]    BF16, position p in p % window    gathered by rows
//   pool        [pages, 64, head_dim]        BF16, compressed entries          gathered by rows
//   table       [slots, max_pages]           int32, pages of entry w / 64      read for each key
//   picks       [m, top_k]                   int32, entries of a list          read for each key
//   sinks       [heads]                      f32                               read at the end
//   rope        [positions, rope_dim / 2]    f32 pairs (cos, sin)              read with Q and at the end
//   positions, sequences    [m]              int32, of each token              read first
//   step_start, first_row   [slots]          int32, position and row of the first token of a sequence in the step
//   o           [m, heads, head_dim]         BF16                              written
//   workspace, mix                           as in templates/attend            not used
//
//   block = 2 warpgroups, one token, 64 heads; grid = (tokens, head tiles)
//
//   keys      | gather tile i + 1 (cp.async) ...................................................... |
//   group 0   | first Q from q | S = Q K' | P = 2^(S - max), sums | rescale, O += P K |             |
//   group 1   |        "       |          | S = Q K'              | P = .., sums      | O += P K    |
//
//   shared memory   Q, two tiles of K
//   barrier   joins                 announces
//   0         all, once a tile      the tile has arrived, and nobody reads the other one any more
//   1         all, once a tile      group 0 has its scores: group 1 then keeps the tensor cores busy during its softmax
//
// Both warpgroups compute S of all heads and keys, and O of half of the columns each. So S is computed twice, which
// costs half as many products again; in return a row of S lies in four lanes, its maximum and sum take no shared memory
// and no barrier, and P is an operand in the registers where it was made. Q and K lie in blocks of 64 columns; the
// values are the same blocks, read transposed.
// Exactness: f32 sums, P rounded to BF16, one rounding of O; the order of every sum follows from the position.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
#include "arch/barrier.cuh"
#include "arch/bf16.cuh"
#include "arch/bulk_copy.cuh"
#include "arch/dependent.cuh"
#include "arch/named_barrier.cuh"
#include "arch/wgmma.cuh"
#include "arch/wgmma_attention.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"
#include "lib/rotary.cuh"
#include "lib/bucket.cuh"
#include "lib/pieces.cuh"
#include "lib/attended.cuh"
#include "lib/attention_block.cuh"

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
  static constexpr int kSmemBytes = ${ op.smem_bytes }$;
};

using Shape = AttentionBlock<Config>;
constexpr int kColumnBlocks = Config::kHeadDim / 64;
constexpr int kBlockBytes = 64 * 128;                 // 64 rows of 64 columns
constexpr int kGroupColumns = Config::kHeadDim / 2;   // of a warpgroup, for O
constexpr int kKeyTiles = Config::kKeyTile / 8;       // 8-key tiles of S
static_assert(Config::kHeadDim == 512 && Config::kHeadTile == 64 && Config::kKeyTile == 64, "the widths of wgmma");
static_assert(Shape::kProbabilitiesAt == Config::kSmemBytes, "host and device disagree on shared memory");

// Rows of queries and keys in blocks of 64 columns, each swizzled by 128 bytes.
struct Place {
  __device__ __forceinline__ static uint32_t address(uint32_t base, int row, int piece) {
    return piece_address<8>(base + piece / 8 * kBlockBytes, row, piece % 8);
  }
};

// S of all heads and keys of a tile: for each 8 keys (head g, keys 2c and 2c + 1), (head g + 8, the same).
__device__ __forceinline__ void multiply_queries(float (&s)[4 * kKeyTiles], uint32_t queries, uint32_t keys) {
#pragma unroll
  for (int i = 0; i < 4 * kKeyTiles; ++i) s[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < 4 * kKeyTiles; ++i) pin_register(s[i]);
  wgmma_fence();
  const uint64_t a = swizzled_descriptor(queries);
  const uint64_t b = swizzled_descriptor(keys);
#pragma unroll
  for (int block = 0; block < kColumnBlocks; ++block) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int offset = (block * kBlockBytes + step * 32) / 16;  // 16 k are 32 bytes, and the descriptor counts 16
      wgmma_scores(s, a + offset, b + offset);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 4 * kKeyTiles; ++i) pin_register(s[i]);
}

// The softmax of a lane's two heads, g and g + 8 of its warp's 16, over the keys so far.
struct Softmax {
  float running[2];  // maxima
  float sums[2];     // of this lane's probabilities: those of two keys of each eight
  float factors[2];  // by what older sums shrink

  // P of a tile from its scores, as the left operands of 16 keys each; keys from `n_left` on are not there.
  __device__ __forceinline__ void exponentiate(uint32_t (&p)[kKeyTiles / 2][4], float (&s)[4 * kKeyTiles], int n_left,
                                               int lane) {
    const float factor = kLog2E / sqrtf(static_cast<float>(Config::kHeadDim));
    if (n_left < Config::kKeyTile) {  // the last tile only
#pragma unroll
      for (int i = 0; i < 4 * kKeyTiles; ++i) {
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= n_left) s[i] = -__int_as_float(0x7F800000);
      }
    }
    float most[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 0; i < 4 * kKeyTiles; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 2));
      most[r] = fmaxf(running[r], most[r] * factor);
      factors[r] = exp2_of_negative(running[r] - most[r]);
      running[r] = most[r];
      float sum = 0.0f;
#pragma unroll
      for (int tile = 0; tile < kKeyTiles; ++tile) {
        const float low = exp2_of_negative(__fmaf_rn(s[tile * 4 + r * 2], factor, -most[r]));
        const float high = exp2_of_negative(__fmaf_rn(s[tile * 4 + r * 2 + 1], factor, -most[r]));
        p[tile / 2][tile % 2 * 2 + r] = pair_from_floats(low, high);
        sum += low + high;
      }
      sums[r] = __fmaf_rn(sums[r], factors[r], sum);
    }
  }

  // What the sums of values of a head are divided by, inverted.
  __device__ __forceinline__ float inverse(int r, float sink) const {
    float sum = sums[r] + __shfl_xor_sync(0xFFFFFFFFu, sums[r], 1);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    return inverse_of(sum, sink, running[r]);
  }
};

// Sums of values of a lane's two heads over a warpgroup's columns: for each 8 columns (head g, columns 2c and 2c + 1),
// (head g + 8, the same).
struct Values {
  float o[kGroupColumns / 2];

  __device__ __forceinline__ void rescale(const float (&factors)[2]) {
    // Maxima settle after a few tiles, and a factor of 1 changes nothing.
    if (!__any_sync(0xFFFFFFFFu, factors[0] != 1.0f || factors[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) o[i] *= factors[i / 2 % 2];
  }

  __device__ __forceinline__ void multiply(const uint32_t (&p)[kKeyTiles / 2][4], uint32_t keys, int group) {
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
    wgmma_fence();
    const uint64_t b = transposed_descriptor(keys + group * (kColumnBlocks / 2 * kBlockBytes), kBlockBytes);
#pragma unroll
    for (int step = 0; step < kKeyTiles / 2; ++step) wgmma_values(o, p[step], b + step * (16 * 128 / 16));
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
  }

  // BF16 rows of the lane's heads, divided by the denominators and rotated back. `to` is the row of the first head.
  __device__ __forceinline__ void store(bf16* to, const float (&inverses)[2], const float2* turns, int n_heads,
                                        int group, int head, int lane) const {
#pragma unroll
    for (int n = 0; n < kGroupColumns / 8; ++n) {
      const int column = group * kGroupColumns + n * 8 + lane % 4 * 2;
      const int rotated = column - (Config::kHeadDim - Config::kRopeDim);
      const float2 turn = rotated >= 0 ? turns[rotated / 2] : make_float2(1.0f, 0.0f);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = head + r * 8;
        if (row >= n_heads) continue;
        float2 pair = make_float2(o[n * 4 + r * 2] * inverses[r], o[n * 4 + r * 2 + 1] * inverses[r]);
        if (rotated >= 0) pair = rotated_back(pair, turn);
        *reinterpret_cast<uint32_t*>(to + row * Config::kHeadDim + column) = pair_from_floats(pair.x, pair.y);
      }
    }
  }
};

// What a warpgroup has summed over all tiles.
struct Block {
  Values values = {};
  Softmax softmax = {};
  const float2* turns;  // of the token's position

  __device__ __forceinline__ void run(uint8_t* shared, const Keys<Config>& keys, int n_tiles, int warp, int lane) {
    constexpr int kHasScores = 1;
    const uint32_t smem = smem_address(shared);
    const int group = warp / 4;
    softmax.running[0] = softmax.running[1] = -__int_as_float(0x7F800000);
    const auto key_of = [&](int tile) {
      return keys.at(tile * Config::kKeyTile + warp * Shape::kFetched + lane % Shape::kFetched);
    };
    fetch_keys<Config, Place>(smem + Shape::kKeysAt, key_of(0), warp, lane);
    commit_copies();
    // Addresses take two dependent loads: they are looked up a tile ahead of their copies.
    const bf16* next = key_of(1);
    wait_copies<1>();  // the queries have arrived, the keys may be on their way
    normalise_queries<Config, Place>(shared, turns, warp, lane);
    for (int tile = 0; tile < n_tiles; ++tile) {
      const uint32_t tile_keys = smem + Shape::kKeysAt + (tile & 1) * Shape::kTileBytes;
      wait_copies<0>();
      fence_async_proxy();
      __syncthreads();  // the tile has arrived, and nobody reads the other one any more
      if (tile + 1 < n_tiles) {
        fetch_keys<Config, Place>(smem + Shape::kKeysAt + (~tile & 1) * Shape::kTileBytes, next, warp, lane);
        next = key_of(tile + 2);
      }
      commit_copies();
      float s[4 * kKeyTiles];
      uint32_t p[kKeyTiles / 2][4];
      if (group == 1) join_threads(kHasScores, Shape::kWarps * 32);
      multiply_queries(s, smem, tile_keys);
      if (group == 0) arrive_at(kHasScores, Shape::kWarps * 32);
      softmax.exponentiate(p, s, keys.attended.n_keys - tile * Config::kKeyTile, lane);
      values.rescale(softmax.factors);
      values.multiply(p, tile_keys, group);
    }
  }
};

extern "C" __global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    attend_wgmma(const bf16* q, const bf16* kv_step, const bf16* kv_ring, const bf16* pool, const int* table,
           const int* picks, const float* sinks, const float2* rope, const int* positions, const int* sequences,
           const int* step_start, const int* first_row, bf16* o, float* workspace, const int* m_on_device, int m,
           int max_pages, float* mix) {
  extern __shared__ __align__(1024) uint8_t shared[];
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.x;
  const int position = positions[token];  // asked for together with the number of tokens
  const int slot = sequences[token];
  if (token >= actual_tokens(m_on_device, m)) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Attended<Config> attended(position);
  const Keys<Config> keys{attended,
                  kv_step + int64_t{first_row[slot]} * Config::kHeadDim,
                  kv_ring + int64_t{slot} * Config::kWindow * Config::kHeadDim,
                  pool,
                  table + int64_t{slot} * max_pages,
                  picks + int64_t{token} * Config::kTopK,
                  step_start[slot]};
  const int first_head = blockIdx.y * Config::kHeadTile;
  const int n_heads = smaller(Config::kHeadTile, Config::kHeads - first_head);
  const int64_t row = int64_t{token} * Config::kHeads + first_head;
  fetch_queries<Config, Place>(smem_address(shared), q + row * Config::kHeadDim, first_head, warp, lane);
  commit_copies();
  Block block;
  block.turns = rope + int64_t{position} * (Config::kRopeDim / 2);
  block.run(shared, keys, ceil_divide(attended.n_keys, Config::kKeyTile), warp, lane);
  const int head = warp % 4 * 16 + lane / 4;
  float inverses[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sink = head + r * 8 < n_heads ? sinks[first_head + head + r * 8] : 0.0f;
    inverses[r] = block.softmax.inverse(r, sink);
  }
  block.values.store(o + row * Config::kHeadDim, inverses, block.turns, n_heads, warp / 4, head, lane);
}
