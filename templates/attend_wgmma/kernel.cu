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
//   sinks       [heads]                      f32                               read first
//   rope        [positions, rope_dim / 2]    f32 pairs (cos, sin)              read with Q and at the end
//   positions, sequences    [m]              int32, of each token              read a token ahead
//   step_start, first_row   [slots]          int32, position and row of the first token of a sequence in the step
//   o           [m, heads, head_dim]         BF16                              written
//   workspace, mix                           as in templates/attend            not used
//
//   block = 3 warpgroups, 64 heads; grid = (blocks, head tiles); a block takes every gridDim.x-th token
//
//   scores     | Q: norm  | S = Q K' | P of 32 keys | P of 32, O left += P K | O left += P K  | S of the next tile
//   values     | and turn |                                                  | O right += P K |
//   producer   | gathers tile i + 1, then i + 2 once both have read tile i; Q of the next token behind the last S
//
//   shared memory   Q, two tiles of K, what the scores group hands over of two tiles and at the end, mbarriers
//   barrier         arrivals            announces
//   tile full[s]    128, when landed    the 64 keys of a tile lie in slot s
//   tile free[s]    8, a consumer warp  O has been summed over them
//   query full      128, when landed    the queries of the token lie in shared memory
//   query free      4, a scores warp    the last S of the token is there
//   kNormalised     256 threads         both groups have normalised their heads; only the scores group waits
//   kHanded[s, w]   64 threads          warp w of the scores group has left P and factors for its twin
//   kSummed[w]      64 threads          the same for the denominators
//
// One group computes S of all heads and keys: two with half of the columns each would have to add them up, two with
// half of the keys would read the queries twice. Both sum O, each over half of the columns. Lanes of the same place in
// the two groups need the same P as operands: so P goes from lane to lane, and twin warps wait for each other only. The
// producer looks up the keys of a tile before its slot is free, and has a whole tile's time for it.
// What is handed over lies in the slot of its tile and needs no barrier that frees it: the keys of a tile arrive only
// after both groups have used up what was in the slot before, and what is handed over follows from these keys. For the
// same reason a kHanded is met again only after both its warps have left it, and kNormalised and kSummed a token later.
// Exactness: f32 sums, P rounded to BF16, one rounding of O; the order of every sum follows from the position, and
// what P refers to from the keys in that order.
#include "lib/words.cuh"
#include "arch/async_copy.cuh"
#include "arch/barrier.cuh"
#include "arch/bf16.cuh"
#include "arch/bulk_copy.cuh"
#include "arch/dependent.cuh"
#include "arch/named_barrier.cuh"
#include "arch/prefetch.cuh"
#include "arch/wgmma.cuh"
#include "arch/wgmma_attention.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"
#include "lib/exponential.cuh"
#include "lib/lanes.cuh"
#include "lib/lane_transpose.cuh"
#include "lib/ring.cuh"
#include "lib/rotary.cuh"
#include "lib/bucket.cuh"
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
  static constexpr int kSmemBytes = ${ op.smem_bytes }$;
};

using Shape = AttentionBlock<Config>;
constexpr int kColumnBlocks = Config::kHeadDim / 64;
constexpr int kBlockBytes = 64 * 128;                 // 64 rows of 64 columns
constexpr int kGroupColumns = Config::kHeadDim / 2;   // of a warpgroup, for O
constexpr int kKeyTiles = Config::kKeyTile / 8;       // 8-key tiles of S
constexpr int kHalfSteps = kKeyTiles / 4;             // products over 16 keys each in half a tile
constexpr int kProducerWarps = 4;
constexpr int kProducerRows = Config::kHeadTile / kProducerWarps;  // of 64, queries or keys, that a warp copies
constexpr int kConsumerThreads = Shape::kWarps * 32;
constexpr int kProducerRegisters = 72;                // of the 168 that each of 384 threads starts with
constexpr int kConsumerRegisters = 216;
static_assert(Config::kHeadDim == 512 && Config::kHeadTile == 64 && Config::kKeyTile == 64, "the widths of wgmma");
static_assert(2 * kConsumerRegisters + kProducerRegisters <= 3 * 168, "what some take the others have given");

// Barriers of named threads; __syncthreads is 0. Those of twin warps are counted up from here.
constexpr int kNormalised = 1;
constexpr int kHanded = 2;   // two slots of four warps
constexpr int kSummed = 10;  // four warps

// Shared memory behind queries and keys. What is handed over has a place for each of the 128 threads of a group.
struct Room {
  static constexpr int kFactorsAt = 128 * 64;  // behind P, 64 bytes of a lane
  static constexpr int kHandedBytes = kFactorsAt + 128 * 8;
  static constexpr int kHandedAt = Shape::kKeysAt + 2 * Shape::kTileBytes;
  static constexpr int kInversesAt = kHandedAt + 2 * kHandedBytes;
  static constexpr int kTileBarriersAt = kInversesAt + 128 * 8;
  static constexpr int kQueryBarriersAt = kTileBarriersAt + Ring<2>::kBarrierBytes;
  static constexpr int kBytes = kQueryBarriersAt + Ring<1>::kBarrierBytes;
};
static_assert(Room::kBytes == Config::kSmemBytes, "host and device disagree on shared memory");

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

// From a score to a power of two.
__device__ __forceinline__ float score_scale() { return kLog2E / sqrtf(static_cast<float>(Config::kHeadDim)); }

// P of a tile, as the left operands of 16 keys each, and by what older sums shrink, of a lane's two heads.
struct Probabilities {
  uint32_t p[kKeyTiles / 2][4];
  float factors[2];

  // Of 32 keys that are not there.
  template <int kHalf>
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = kHalf * kHalfSteps * 4; i < (kHalf + 1) * kHalfSteps * 4; ++i) p[i / 4][i % 4] = 0;
  }

  // Those of 32 keys to `slot` in shared memory; `place` is the thread of the group: neighbours write neighbouring 16
  // bytes. The second half brings the factors along.
  template <int kHalf>
  __device__ __forceinline__ void hand_over(uint8_t* slot, int place) const {
#pragma unroll
    for (int i = kHalf * kHalfSteps; i < (kHalf + 1) * kHalfSteps; ++i) {
      reinterpret_cast<uint4*>(slot)[i * 128 + place] = make_uint4(p[i][0], p[i][1], p[i][2], p[i][3]);
    }
    if (kHalf == 1) reinterpret_cast<float2*>(slot + Room::kFactorsAt)[place] = make_float2(factors[0], factors[1]);
  }

  __device__ __forceinline__ void take(const uint8_t* slot, int place) {
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) {
      const uint4 words = reinterpret_cast<const uint4*>(slot)[i * 128 + place];
      p[i][0] = words.x;
      p[i][1] = words.y;
      p[i][2] = words.z;
      p[i][3] = words.w;
    }
    const float2 pair = reinterpret_cast<const float2*>(slot + Room::kFactorsAt)[place];
    factors[0] = pair.x;
    factors[1] = pair.y;
  }
};

// The softmax of a lane's two heads, g and g + 8 of its warp's 16, over the keys so far. Probabilities are 2^(score -
// reference); the reference is the largest score of the first tile, and moves to a later one that is more than
// kMostAhead above it. So sums are rarely rescaled, a probability is at most 2^kMostAhead, and BF16 and f32 round it as
// they round one below 1.
struct Softmax {
  static constexpr float kMostAhead = 8.0f;
  float reference[2] = {-__int_as_float(0x7F800000), -__int_as_float(0x7F800000)};
  float sums[2] = {};  // of this lane's probabilities: those of two keys of each eight

  // Looks at the scores of a tile before their probabilities are asked for; keys from `n_left` on are not there.
  __device__ __forceinline__ void follow(float (&factors)[2], float (&s)[4 * kKeyTiles], int n_left, int lane) {
    if (n_left < Config::kKeyTile) {  // the last tile only
#pragma unroll
      for (int i = 0; i < 4 * kKeyTiles; ++i) {
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= n_left) s[i] = -__int_as_float(0x7F800000);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(s[r * 2], s[r * 2 + 1]);
#pragma unroll
      for (int tile = 1; tile < kKeyTiles; ++tile) {
        most = fmaxf(most, fmaxf(s[tile * 4 + r * 2], s[tile * 4 + r * 2 + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2)) * score_scale();
      const float now = most > reference[r] + kMostAhead ? most : reference[r];
      factors[r] = exp2_of_negative(reference[r] - now);  // exactly 1 if it stays
      reference[r] = now;
      sums[r] *= factors[r];
    }
  }

  // Probabilities of one half of the tile's keys.
  template <int kHalf>
  __device__ __forceinline__ void exponentiate(Probabilities& to, const float (&s)[4 * kKeyTiles]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = 0.0f;
#pragma unroll
      for (int tile = kHalf * 2 * kHalfSteps; tile < (kHalf + 1) * 2 * kHalfSteps; ++tile) {
        const float low = exp2_of_negative(__fmaf_rn(s[tile * 4 + r * 2], score_scale(), -reference[r]));
        const float high = exp2_of_negative(__fmaf_rn(s[tile * 4 + r * 2 + 1], score_scale(), -reference[r]));
        to.p[tile / 2][tile % 2 * 2 + r] = pair_from_floats(low, high);
        sum += low + high;
      }
      sums[r] += sum;
    }
  }

  // What the sums of values of a head are divided by, inverted.
  __device__ __forceinline__ float inverse(int r, float sink) const {
    float sum = sums[r] + __shfl_xor_sync(0xFFFFFFFFu, sums[r], 1);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    return inverse_of(sum, sink, reference[r]);
  }
};

// Sums of values of a lane's two heads over a warpgroup's columns: for each 8 columns (head g, columns 2c and 2c + 1),
// (head g + 8, the same).
template <int kGroup>
struct Values {
  float o[kGroupColumns / 2] = {};

  __device__ __forceinline__ void rescale(const float (&factors)[2]) {
    if (__any_sync(0xFFFFFFFFu, factors[0] != 1.0f || factors[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < kGroupColumns / 2; ++i) o[i] *= factors[i / 2 % 2];
    }
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
  }

  // Starts the products of 32 keys. Until they have been waited for, nobody may touch the sums, nor P of these keys.
  template <int kHalf>
  __device__ __forceinline__ void start(const Probabilities& of, uint32_t keys) {
    wgmma_fence();
    const uint64_t b = transposed_descriptor(keys + kGroup * (kColumnBlocks / 2 * kBlockBytes), kBlockBytes);
#pragma unroll
    for (int i = kHalf * kHalfSteps; i < (kHalf + 1) * kHalfSteps; ++i) {
      wgmma_values(o, of.p[i], b + i * (16 * 128 / 16));
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void wait() {
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
  }

  // BF16 rows of the lane's heads, divided by the denominators and rotated back; 32 columns at a time change lanes, so
  // that each stores 16 bytes. `to` is the row of the first head.
  __device__ __forceinline__ void store(bf16* to, float2 inverses, const float2* turns, int n_heads, int head,
                                        int lane) const {
#pragma unroll
    for (int n = 0; n < kGroupColumns / 8; n += 4) {
      uint32_t words[2][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int rotated = kGroup * kGroupColumns + (n + j) * 8 - (Config::kHeadDim - Config::kRopeDim);
        const float2 turn = rotated >= 0 ? turns[rotated / 2 + lane % 4] : make_float2(1.0f, 0.0f);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int i = (n + j) * 4 + r * 2;
          const float inverse = r == 0 ? inverses.x : inverses.y;
          float2 pair = make_float2(o[i] * inverse, o[i + 1] * inverse);
          if (rotated >= 0) pair = rotated_back(pair, turn);
          words[r][j] = pair_from_floats(pair.x, pair.y);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        transpose_in_four(words[r], lane);
        const int column = kGroup * kGroupColumns + (n + lane % 4) * 8;
        bf16* place = to + (head + r * 8) * Config::kHeadDim + column;
        if (head + r * 8 >= n_heads) continue;
        *reinterpret_cast<uint4*>(place) = make_uint4(words[r][0], words[r][1], words[r][2], words[r][3]);
      }
    }
  }
};

// The arrays of a launch, and which heads and tokens are this block's.
struct Launch {
  const bf16* q;
  const bf16* kv_step;
  const bf16* kv_ring;
  const bf16* pool;
  const int* table;
  const int* picks;
  const float* sinks;
  const float2* rope;
  const int* positions;
  const int* sequences;
  const int* step_start;
  const int* first_row;
  bf16* o;
  int max_pages;
  int n_tokens;
  int first_head;
  int n_heads;

  // Of the block's first head of a token, in q and in o.
  __device__ __forceinline__ int64_t row(int token) const {
    return (int64_t{token} * Config::kHeads + first_head) * Config::kHeadDim;
  }

  __device__ __forceinline__ Keys<Config> keys_of(int token) const {
    const int slot = sequences[token];
    return {Attended<Config>(positions[token]),
            kv_step + int64_t{first_row[slot]} * Config::kHeadDim,
            kv_ring + int64_t{slot} * Config::kWindow * Config::kHeadDim,
            pool,
            table + int64_t{slot} * max_pages,
            picks + int64_t{token} * Config::kTopK,
            step_start[slot]};
  }
};

// The barriers of a block and what of its shared memory is where.
struct Shared {
  uint8_t* at;

  __device__ __forceinline__ Ring<2> tiles() const { return {smem_address(at) + Room::kTileBarriersAt}; }
  __device__ __forceinline__ Ring<1> queries() const { return {smem_address(at) + Room::kQueryBarriersAt}; }
  __device__ __forceinline__ uint32_t keys(int slot) const {
    return smem_address(at) + Shape::kKeysAt + slot * Shape::kTileBytes;
  }
  __device__ __forceinline__ uint8_t* handed(int slot) const {
    return at + Room::kHandedAt + slot * Room::kHandedBytes;
  }
  __device__ __forceinline__ float2* inverses() const { return reinterpret_cast<float2*>(at + Room::kInversesAt); }
};

// Starts the copies of a warp's 16 rows of 64, queries or keys. Lane i knows where row i lies; what is not there comes
// as zeros, which the probability 0 of such a key needs: 0 * NaN would not vanish. Eight rows at a time, since all
// addresses at once take more registers than a producer has.
__device__ __forceinline__ void fetch_rows(uint32_t tile, const bf16* row_of_lane, int warp, int lane) {
#pragma unroll 1
  for (int first = 0; first < kProducerRows; first += 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint64_t row = __shfl_sync(0xFFFFFFFFu, reinterpret_cast<uint64_t>(row_of_lane), first + i);
      const uint8_t* from = reinterpret_cast<const uint8_t*>(row) + lane * 16;
      const uint32_t to = Place::address(tile, warp * kProducerRows + first + i, lane);
      const int there = row != 0 ? 16 : 0;
      copy_async_16_or_zeros(to, from, there);
      copy_async_16_or_zeros(to + kColumnBlocks / 2 * kBlockBytes, from + Config::kHeadDim, there);
    }
  }
}

// The producer: keys of all tiles of all tokens, and the queries behind the first tile, whose slot is free earlier.
__device__ __forceinline__ void produce(const Launch& launch, const Shared& shared, int warp, int lane) {
  const int row_of_lane = warp * kProducerRows + lane % kProducerRows;
  const Ring<1> queries = shared.queries();
  const Ring<2> tiles = shared.tiles();
  RingPosition<2> tile;
  RingPosition<1> query;
  const auto bring_queries = [&](int token) {
    const bf16* from = launch.q + launch.row(token) + row_of_lane * Config::kHeadDim;
    barrier_wait(queries.free(0), query.parity ^ 1);
    fetch_rows(smem_address(shared.at), row_of_lane < launch.n_heads ? from : nullptr, warp, lane);
    barrier_arrive_after_copies(queries.full(0));
    query.advance();
    // Those of the next token need not come from memory then.
    const int next = token + gridDim.x;
    if (warp == 0 && lane == 0 && next < launch.n_tokens) {
      prefetch_bulk(launch.q + launch.row(next), launch.n_heads * Config::kHeadDim * 2);
    }
  };
  const int first = blockIdx.x;
  if (first < launch.n_tokens) bring_queries(first);
  for (int token = first; token < launch.n_tokens; token += gridDim.x) {
    const Keys<Config> keys = launch.keys_of(token);
    const int n_keys = keys.attended.n_keys;
    const bf16* key = keys.at(row_of_lane);
    for (int first_key = 0; first_key < n_keys; first_key += Config::kKeyTile) {
      barrier_wait(tiles.free(tile.slot), tile.parity ^ 1);
      fetch_rows(shared.keys(tile.slot), key, warp, lane);
      barrier_arrive_after_copies(tiles.full(tile.slot));
      tile.advance();
      if (first_key == 0 && token != first) bring_queries(token);
      key = keys.at(first_key + Config::kKeyTile + row_of_lane);  // nothing behind the last tile
    }
  }
  commit_copies();
  wait_copies<0>();
}

// The two groups of consumers: 0 has the scores and the left columns, 1 the right ones. `warp` counts through both.
template <int kGroup>
struct Consumer {
  const Launch& launch;
  const Shared& shared;
  int warp;
  int lane;
  RingPosition<2> tile = {};
  RingPosition<1> query = {};
  Values<kGroup> values = {};
  Softmax softmax = {};  // of group 0

  __device__ __forceinline__ int place() const { return warp % 4 * 32 + lane; }  // the thread within its group
  __device__ __forceinline__ int head() const { return warp % 4 * 16 + lane / 4; }

  // Waits for a token's queries, and makes of this warp's what S takes.
  __device__ __forceinline__ void prepare_queries(const float2* turns) {
    const HeadTurns<Config> head_turns(turns, lane);
    barrier_wait(shared.queries().full(0), query.parity);
    query.advance();
    normalise_heads<Config, Place, 4>(shared.at, head_turns, warp, lane);
    fence_async_proxy();
    if constexpr (kGroup == 0) {
      join_threads(kNormalised, kConsumerThreads);
    } else {
      arrive_at(kNormalised, kConsumerThreads);
    }
  }

  // P of the tile, and the first half of its products.
  __device__ __forceinline__ void score(Probabilities& p, int n_left) {
    float s[4 * kKeyTiles];
    multiply_queries(s, smem_address(shared.at), shared.keys(tile.slot));
    if (n_left <= Config::kKeyTile && lane == 0) barrier_arrive(shared.queries().free(0));
    softmax.follow(p.factors, s, n_left, lane);
    values.rescale(p.factors);
    softmax.exponentiate<0>(p, s);
    p.hand_over<0>(shared.handed(tile.slot), place());
    values.template start<0>(p, shared.keys(tile.slot));
    // The branch also keeps the compiler from finding all probabilities first: here products are under way.
    if (n_left > Config::kKeyTile / 2) {
      softmax.exponentiate<1>(p, s);
    } else {
      p.clear<1>();
    }
    p.hand_over<1>(shared.handed(tile.slot), place());
  }

  // The tile in which `n_left` keys and more are left.
  __device__ __forceinline__ void add_tile(int n_left) {
    const int handed = kHanded + tile.slot * 4 + warp % 4;
    const uint32_t keys = shared.keys(tile.slot);
    Probabilities p;
    barrier_wait(shared.tiles().full(tile.slot), tile.parity);
    fence_async_proxy();
    if constexpr (kGroup == 0) {
      score(p, n_left);
      arrive_at(handed, 64);
    } else {
      join_threads(handed, 64);
      p.take(shared.handed(tile.slot), place());
      values.rescale(p.factors);
      values.template start<0>(p, keys);
    }
    values.template start<1>(p, keys);
    values.wait();
    if (lane == 0) barrier_arrive(shared.tiles().free(tile.slot));
    tile.advance();
  }

  // What the sums of values are divided by, inverted.
  __device__ __forceinline__ float2 share_inverses(const float (&sinks)[2]) const {
    if constexpr (kGroup == 0) {
      const float2 inverses = make_float2(softmax.inverse(0, sinks[0]), softmax.inverse(1, sinks[1]));
      shared.inverses()[place()] = inverses;
      arrive_at(kSummed + warp % 4, 64);
      return inverses;
    } else {
      join_threads(kSummed + warp % 4, 64);
      return shared.inverses()[place()];
    }
  }

  __device__ __forceinline__ void run() {
    float sinks[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (kGroup == 0 && head() + r * 8 < launch.n_heads) sinks[r] = launch.sinks[launch.first_head + head() + r * 8];
    }
    const int first = blockIdx.x;
    int next_position = first < launch.n_tokens ? launch.positions[first] : 0;
    for (int token = first; token < launch.n_tokens; token += gridDim.x) {
      const int position = next_position;
      const int next = token + gridDim.x;
      if (next < launch.n_tokens) next_position = launch.positions[next];
      const float2* turns = launch.rope + int64_t{position} * (Config::kRopeDim / 2);
      prepare_queries(turns);
      values = {};
      softmax = {};
      for (int n_left = Attended<Config>(position).n_keys; n_left > 0; n_left -= Config::kKeyTile) add_tile(n_left);
      const float2 inverses = share_inverses(sinks);
      values.store(launch.o + launch.row(token), inverses, turns, launch.n_heads, head(), lane);
    }
  }
};

extern "C" __global__ void __launch_bounds__(kConsumerThreads + kProducerWarps * 32, 1)
    attend_wgmma(const bf16* q, const bf16* kv_step, const bf16* kv_ring, const bf16* pool, const int* table,
           const int* picks, const float* sinks, const float2* rope, const int* positions, const int* sequences,
           const int* step_start, const int* first_row, bf16* o, float* workspace, const int* m_on_device, int m,
           int max_pages, float* mix) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  launch_dependents();
  const Shared shared{bytes};
  if (threadIdx.x == 0) {
    shared.tiles().init(kProducerWarps * 32, Shape::kWarps);
    shared.queries().init(kProducerWarps * 32, 4);
  }
  __syncthreads();
  wait_for_dependency();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int first_head = blockIdx.y * Config::kHeadTile;
  const Launch launch{q, kv_step, kv_ring, pool, table, picks, sinks, rope, positions, sequences, step_start, first_row,
                      o, max_pages, actual_tokens(m_on_device, m), first_head,
                      smaller(Config::kHeadTile, Config::kHeads - first_head)};
  if (warp >= Shape::kWarps) {
    give_registers<kProducerRegisters>();
    produce(launch, shared, warp - Shape::kWarps, lane);
    return;
  }
  take_registers<kConsumerRegisters>();
  if (warp < 4) {
    Consumer<0>{launch, shared, warp, lane}.run();
  } else {
    Consumer<1>{launch, shared, warp, lane}.run();
  }
}
