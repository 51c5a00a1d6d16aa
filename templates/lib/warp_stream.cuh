// One warp multiplies kRowTiles x 16 rows of packed weights with up to kTokens tokens over its own range of slabs.
//
// Everything goes through a ring in shared memory that belongs to this warp alone. A lane copies exactly the codes that
// it will decode itself, so the ring is a deep FIFO without registers and without barriers between warps; scales and
// tokens are shared among the lanes of the warp, which __syncwarp covers.
//
//   stage   codes [kSlabs][kRowTiles][chunk][lane][16 B] | scales [kSlabs][kRowTiles][..] | tokens [kSlabs][kTokens][k]
//
//   weights  |0|1|2|3|4|5|      fetched kStages - 1 ahead; with kMayPrefetch before the dependency is waited for
//   tokens     ^ |0|1|2|3|4|    fetched after it
//   multiply       |0|1|2|3|    one commit group a stage, and one of the weights that came before the dependency: wait
//                               for the oldest stage, refill its predecessor, multiply
//
// With kStages = 1 there is no ring: lib/warp_registers.cuh holds the codes in registers, and this memory only tokens.
//
// Config gives: Weights (the format), kRowTiles, kTokens, kSlabs (slabs in a stage), kStages, kSignal.
//
// A source, which the kernel writes, gives:
//   slab(i), tile    slab i of a block of 64 rows, and this warp's first row tile in it
//   tokens(i)        those that slab i is multiplied with: count, and row(token), where k = 0 stands
//   k(i), k_end      the first k of slab i, and where k ends
//   kMayPrefetch     whether weights may be fetched before the dependency is waited for; if not, the caller has waited
//   resolve()        with kMayPrefetch, called behind that wait: reads what the grid ahead may have written

template <class Config>
struct WarpRing {
  using Format = typename Config::Weights;
  static constexpr int kTokenTiles = ceil_divide(Config::kTokens, 8);
  static constexpr int kCodeBytes = Config::kRowTiles * Slab<Format>::kTileCodeBytes;    // of a slab
  static constexpr int kScaleBytes = Config::kRowTiles * Slab<Format>::kTileScaleBytes;  // of a slab
  static constexpr int kTokenStride = Format::kSlabK * 2 + 16;  // 16 more: ldmatrix then meets no bank twice
  static constexpr int kTokenBytes = Config::kTokens * kTokenStride;
  static constexpr int kScaleOffset = Config::kSlabs * kCodeBytes;
  static constexpr int kTokenOffset = Config::kStages == 1 ? 0 : kScaleOffset + Config::kSlabs * kScaleBytes;
  static constexpr int kStageBytes = round_up(kTokenOffset + Config::kSlabs * kTokenBytes, 128);
  static constexpr int kBytes = Config::kStages * kStageBytes;
};

// Sums of one warp: [row tile][token tile][fragment], fragment = (row g, tokens 2c, 2c + 1), (row g + 8, the same).
template <class Config>
using WarpSums = float[Config::kRowTiles][WarpRing<Config>::kTokenTiles][4];

// Starts the copies of one slab's codes and scales. `slab` is the slab of the block of 64 rows, `tile` the first of
// this warp's row tiles in it.
template <class Config>
__device__ __forceinline__ void fetch_weights(uint32_t stage, int slab_in_stage, const uint8_t* slab, int tile,
                                              int lane) {
  using Format = typename Config::Weights;
  using Ring = WarpRing<Config>;
  const uint8_t* codes = slab + tile * Slab<Format>::kTileCodeBytes + lane * 16;
  const uint32_t to = stage + slab_in_stage * Ring::kCodeBytes + lane * 16;
#pragma unroll
  for (int run = 0; run < Ring::kCodeBytes / 512; ++run) copy_async_16(to + run * 512, codes + run * 512);
  if (lane < Ring::kScaleBytes / 16) {
    const uint8_t* scales = slab + Format::kCodeBytes + tile * Slab<Format>::kTileScaleBytes + lane * 16;
    copy_async_16(stage + Ring::kScaleOffset + slab_in_stage * Ring::kScaleBytes + lane * 16, scales);
  }
}

// Starts the copies of one slab's tokens: k values `k` to `k + kSlabK`, zeros beyond `k_end` and for absent tokens.
template <class Config, class Tokens>
__device__ __forceinline__ void fetch_tokens(uint32_t stage, int slab_in_stage, const Tokens& tokens, int k, int k_end,
                                             int lane) {
  using Ring = WarpRing<Config>;
  constexpr int kPieces = Config::Weights::kSlabK / 8;  // 16-byte pieces of a token
  const uint32_t to = stage + Ring::kTokenOffset + slab_in_stage * Ring::kTokenBytes;
#pragma unroll
  for (int first = 0; first < Config::kTokens * kPieces; first += 32) {
    const int piece = first + lane;
    const int token = piece / kPieces;
    const int k_piece = k + piece % kPieces * 8;
    if (Config::kTokens * kPieces % 32 == 0 || piece < Config::kTokens * kPieces) {
      const bool is_there = k_piece < k_end && token < tokens.count;
      const bf16* from = is_there ? tokens.row(token) + k_piece : tokens.row(0);
      copy_async_16_or_zeros(to + token * Ring::kTokenStride + piece % kPieces * 16, from, is_there ? 16 : 0);
    }
  }
}

// Multiplies one slab. `tokens` is the address of its tokens in shared memory; words_of(tile, chunk) and
// scales_of(tile) give a lane's codes and scales of a row tile.
template <class Config, class WordsOf, class ScalesOf>
__device__ __forceinline__ void multiply_slab(WarpSums<Config>& sums, uint32_t tokens, int lane, WordsOf words_of,
                                              ScalesOf scales_of) {
  using Format = typename Config::Weights;
  using Ring = WarpRing<Config>;
  const int token = smaller(lane % 8, Config::kTokens - 1);  // below 8 tokens the last one stands in for the rest
  const uint32_t own_tokens = tokens + token * Ring::kTokenStride + lane / 8 * 16;
  typename Format::Scales row_scales[Config::kRowTiles];
  uint4 words[Config::kRowTiles];
#pragma unroll
  for (int tile = 0; tile < Config::kRowTiles; ++tile) row_scales[tile] = scales_of(tile);
  uint32_t b[Ring::kTokenTiles][4];  // of this step of 16 k and the next
#pragma unroll
  for (int step = 0; step < Format::kSlabK / 16; ++step) {
    if (step % 2 == 0) {
#pragma unroll
      for (int t = 0; t < Ring::kTokenTiles; ++t) {
        load_matrix_x4(b[t], own_tokens + t * 8 * Ring::kTokenStride + step * 32);
      }
    }
#pragma unroll
    for (int tile = 0; tile < Config::kRowTiles; ++tile) {
      if (step % Format::kSteps == 0) words[tile] = words_of(tile, step / Format::kSteps);
      uint32_t a[4];
      Format::decode(a, words[tile], row_scales[tile], step % Format::kSteps);
#pragma unroll
      for (int t = 0; t < Ring::kTokenTiles; ++t) {
        multiply_add(sums[tile][t], a, b[t][step % 2 * 2], b[t][step % 2 * 2 + 1]);
      }
    }
  }
}

// Multiplies one slab that has landed in the ring.
template <class Config>
__device__ __forceinline__ void multiply_landed(WarpSums<Config>& sums, const uint8_t* stage, int slab_in_stage,
                                                int lane) {
  using Format = typename Config::Weights;
  using Ring = WarpRing<Config>;
  const uint8_t* codes = stage + slab_in_stage * Ring::kCodeBytes + lane * 16;
  const uint8_t* scales = stage + Ring::kScaleOffset + slab_in_stage * Ring::kScaleBytes;
  const uint32_t tokens = smem_address(stage) + Ring::kTokenOffset + slab_in_stage * Ring::kTokenBytes;
  multiply_slab<Config>(
      sums, tokens, lane,
      [codes](int tile, int chunk) {
        return *reinterpret_cast<const uint4*>(codes + tile * Slab<Format>::kTileCodeBytes + chunk * 512);
      },
      [scales, lane](int tile) {
        return Format::load_scales(scales + tile * Slab<Format>::kTileScaleBytes, lane / 4);
      });
}

// Streams slabs `begin` to `end` of `source` through the ring. kSignal tells where the next grid is let go: 0 at entry,
// by the caller; with kMayPrefetch 1 before the wait for the dependency, 2 after it; 3 when all has been multiplied.
template <class Config, class Source>
__device__ __forceinline__ void stream_through_ring(WarpSums<Config>& sums, Source& source, int begin, int end,
                                                    uint8_t* ring, int lane) {
  using Ring = WarpRing<Config>;
  const uint32_t address = smem_address(ring);
  const int n_stages = ceil_divide(end - begin, Config::kSlabs);
  const auto fetch_stage_weights = [&](int stage_idx, int slot) {
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      const int i = begin + stage_idx * Config::kSlabs + s;
      if (i < end) fetch_weights<Config>(address + slot * Ring::kStageBytes, s, source.slab(i), source.tile, lane);
    }
  };
  const auto fetch_stage_tokens = [&](int stage_idx, int slot) {
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      const int i = begin + stage_idx * Config::kSlabs + s;
      if (i < end) {
        fetch_tokens<Config>(address + slot * Ring::kStageBytes, s, source.tokens(i), source.k(i), source.k_end, lane);
      }
    }
  };

  if constexpr (Source::kMayPrefetch) {
#pragma unroll
    for (int stage = 0; stage < Config::kStages - 1; ++stage) fetch_stage_weights(stage, stage);
    commit_copies();
    if constexpr (Config::kSignal == 1) launch_dependents();
    wait_for_dependency();
    if constexpr (Config::kSignal == 2) launch_dependents();
    source.resolve();
  }
#pragma unroll
  for (int stage = 0; stage < Config::kStages - 1; ++stage) {
    if constexpr (!Source::kMayPrefetch) fetch_stage_weights(stage, stage);
    fetch_stage_tokens(stage, stage);
    commit_copies();
  }

  int slot = 0;
  for (int stage = 0; stage < n_stages; ++stage) {
    wait_copies<Config::kStages - 2>();
    __syncwarp();
    const int ahead = stage + Config::kStages - 1;
    const int ahead_slot = slot == 0 ? Config::kStages - 1 : slot - 1;
    fetch_stage_weights(ahead, ahead_slot);
    fetch_stage_tokens(ahead, ahead_slot);
    commit_copies();
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      const int i = begin + stage * Config::kSlabs + s;
      if (i < end) {
        multiply_landed<Config>(sums, ring + slot * Ring::kStageBytes, s, lane);
      }
    }
    slot = slot == Config::kStages - 1 ? 0 : slot + 1;
  }
  if constexpr (Config::kSignal == 3) launch_dependents();
  wait_copies<0>();
}
