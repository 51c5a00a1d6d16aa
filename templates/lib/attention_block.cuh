// What the blocks of templates/attend and templates/attend_wgmma have in common: how warps share scores, where a
// token's keys lie, what becomes of its queries, and the softmax between the two products.

// Warps across heads and keys while scores are computed, and byte offsets in shared memory.
template <class Config>
struct AttentionBlock {
  static constexpr int kWarps = 8;
  static constexpr int kPieces = Config::kHeadDim / 8;                                  // 16-byte pieces of a key
  static constexpr int kKeyPieces = Config::kKeyTile / 8;                               // and of a row of P
  static constexpr int kHeadWarps = Config::kHeadTile / 16;                             // warps across the heads
  static constexpr int kKeyWarps = smaller(kWarps / kHeadWarps, Config::kKeyTile / 8);  // and across the keys
  static constexpr int kKeyTiles = Config::kKeyTile / 8 / kKeyWarps;                    // 8-key tiles of a warp
  static constexpr int kFetched = Config::kKeyTile / kWarps;                            // keys that a warp fetches
  static constexpr int kTileBytes = Config::kKeyTile * Config::kHeadDim * 2;
  static constexpr int kKeysAt = Config::kHeadTile * Config::kHeadDim * 2;  // queries come first
  static constexpr int kProbabilitiesAt = kKeysAt + 2 * kTileBytes;
  static constexpr int kMaximaAt = kProbabilitiesAt + Config::kHeadTile * Config::kKeyTile * 2;
  static constexpr int kSumsAt = kMaximaAt + 8 * Config::kHeadTile * 4;
  static constexpr int kFactorsAt = kSumsAt + 8 * Config::kHeadTile * 4;
  static constexpr int kRunningAt = kFactorsAt + Config::kHeadTile * 4;
  static constexpr int kBytes = kRunningAt + 2 * Config::kHeadTile * 4;
};

// Where the keys of one token lie.
template <class Config>
struct Keys {
  Attended<Config> attended;
  const bf16* step;   // key of the step's first position of this sequence
  const bf16* ring;   // of its slot
  const bf16* pool;
  const int* pages;   // of its slot
  const int* picks;   // of the token
  int step_start;

  // The j-th key, or null beyond the last.
  __device__ __forceinline__ const bf16* at(int j) const {
    if (j >= attended.n_keys) return nullptr;
    if (j < attended.n_window) {
      const int position = attended.first_position + j;
      if (position >= step_start) return step + int64_t{position - step_start} * Config::kHeadDim;
      return ring + position % Config::kWindow * Config::kHeadDim;
    }
    if constexpr (Config::kCompressed == Compressed::kNone) return nullptr;
    int entry = j - attended.n_window;
    if constexpr (Config::kCompressed == Compressed::kListed) entry = picks[entry];
    const int64_t page = pages[entry / Config::kPageEntries];
    return pool + (page * Config::kPageEntries + entry % Config::kPageEntries) * Config::kHeadDim;
  }
};

// Starts the copies of a warp's heads, every eighth from `first_head` on; heads that are not there are zeros. `Place`
// says where a piece of a row lies. A lane copies what it will normalise: no barrier has to stand between.
template <class Config, class Place>
__device__ __forceinline__ void fetch_queries(uint32_t smem, const bf16* q, int first_head, int warp, int lane) {
  using Block = AttentionBlock<Config>;
#pragma unroll
  for (int head = warp; head < Config::kHeadTile; head += Block::kWarps) {
    const bool is_there = first_head + head < Config::kHeads;
    for (int piece = lane; piece < Block::kPieces; piece += 32) {
      const bf16* from = q + (is_there ? int64_t{head} * Config::kHeadDim + piece * 8 : 0);
      copy_async_16_or_zeros(Place::address(smem, head, piece), from, is_there ? 16 : 0);
    }
  }
}

// Divides a warp's heads by their root mean squares and rotates their ends by `turns`, in place and rounded to BF16
// once. The copies that this thread has started have arrived. Angles are looked up where they are used: many heads
// leave no registers for them. (lib/head_norm.cuh asks for them early.)
template <class Config, class Place>
__device__ __forceinline__ void normalise_queries(uint8_t* shared, const float2* turns, int warp, int lane) {
  using Block = AttentionBlock<Config>;
  constexpr int kChunks = ceil_divide(Block::kPieces, 32);
  static_assert(Config::kRopeDim % 8 == 0, "a piece is rotated, or it is not");
#pragma unroll 2
  for (int head = warp; head < Config::kHeadTile; head += Block::kWarps) {
    float values[kChunks][8] = {};
    float squares = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int piece = chunk * 32 + lane;
      const uint8_t* from = shared + Place::address(0, head, piece);
      if (piece < Block::kPieces) load_eight(values[chunk], reinterpret_cast<const bf16*>(from));
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = __fmaf_rn(values[chunk][i], values[chunk][i], squares);
    }
    const float factor = reciprocal_root(lane_sum(squares) / Config::kHeadDim + Config::kNormEpsilon);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int piece = chunk * 32 + lane;
      if (piece >= Block::kPieces) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) values[chunk][i] *= factor;
      const int rotated = piece * 8 - (Config::kHeadDim - Config::kRopeDim);
      if (rotated >= 0) rotate_pairs(values[chunk], turns, rotated / 2);
      store_eight(reinterpret_cast<bf16*>(shared + Place::address(0, head, piece)), values[chunk]);
    }
  }
}

// Starts the copies of a warp's keys of a tile. Lane i knows where key i lies; what is not there becomes zeros, which
// the probability 0 of such a key needs: 0 * NaN would not vanish.
template <class Config, class Place>
__device__ __forceinline__ void fetch_keys(uint32_t tile, const bf16* key, int warp, int lane) {
  using Block = AttentionBlock<Config>;
#pragma unroll
  for (int i = 0; i < Block::kFetched * Block::kPieces / 32; ++i) {
    const int of_warp = (i * 32 + lane) / Block::kPieces;
    const int piece = (i * 32 + lane) % Block::kPieces;
    const uint64_t from = __shfl_sync(0xFFFFFFFFu, reinterpret_cast<uint64_t>(key), of_warp);
    const uint32_t to = Place::address(tile, warp * Block::kFetched + of_warp, piece);
    copy_async_16_or_zeros(to, reinterpret_cast<const uint8_t*>(from) + piece * 16, from != 0 ? 16 : 0);
  }
}

// Scores of 16 heads and some keys, and the running maximum of two of these heads in each lane.
template <class Config>
struct Scores {
  using Block = AttentionBlock<Config>;

  float s[Block::kKeyTiles][4];
  float running[2];  // of the heads g and g + 8, lane = 4 * g + c

  // To powers of two; keys from `n_left` on are not there. Gives the maximum of this warp's keys for each head.
  __device__ __forceinline__ void scale(float* maxima, int n_left, int head_warp, int key_warp, int lane) {
    const float factor = kLog2E / sqrtf(static_cast<float>(Config::kHeadDim));
    float most[2] = {-__int_as_float(0x7F800000), -__int_as_float(0x7F800000)};
#pragma unroll
    for (int t = 0; t < Block::kKeyTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = (key_warp * Block::kKeyTiles + t) * 8 + lane % 4 * 2 + i % 2;
        s[t][i] = key < n_left ? s[t][i] * factor : -__int_as_float(0x7F800000);
        most[i / 2] = fmaxf(most[i / 2], s[t][i]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 2));
      if (lane % 4 == 0) maxima[key_warp * Config::kHeadTile + head_warp * 16 + r * 8 + lane / 4] = most[r];
    }
  }

  // Probabilities against the new maximum: BF16 for the product, f32 sums of eight keys, which do not depend on how the
  // keys are spread over warps. The first warp of a head says by what older sums shrink.
  __device__ __forceinline__ void exponentiate(uint8_t* shared, int head_warp, int key_warp, int lane) {
    const float* maxima = reinterpret_cast<const float*>(shared + Block::kMaximaAt);
    float* sums = reinterpret_cast<float*>(shared + Block::kSumsAt);
    float* factors = reinterpret_cast<float*>(shared + Block::kFactorsAt);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = head_warp * 16 + r * 8 + lane / 4;
      float most = running[r];
#pragma unroll
      for (int w = 0; w < Block::kKeyWarps; ++w) most = fmaxf(most, maxima[w * Config::kHeadTile + head]);
      if (key_warp == 0 && lane % 4 == 0) factors[head] = exp2_defined(running[r] - most);
      running[r] = most;
#pragma unroll
      for (int t = 0; t < Block::kKeyTiles; ++t) {
        const int tile = key_warp * Block::kKeyTiles + t;
        const float low = exp2_defined(s[t][2 * r] - most);
        const float high = exp2_defined(s[t][2 * r + 1] - most);
        const uint32_t at = piece_address<Block::kKeyPieces>(Block::kProbabilitiesAt, head, tile);
        *reinterpret_cast<uint32_t*>(shared + at + lane % 4 * 4) = pair_from_floats(low, high);
        float sum = low + high;
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
        if (lane % 4 == 0) sums[tile * Config::kHeadTile + head] = sum;
      }
    }
  }
};

// The sum of probabilities of head `head` with those of a tile.
template <class Config>
__device__ __forceinline__ float with_tile(float sum, const uint8_t* shared, int head) {
  using Block = AttentionBlock<Config>;
  const float factor = reinterpret_cast<const float*>(shared + Block::kFactorsAt)[head];
  const float* sums = reinterpret_cast<const float*>(shared + Block::kSumsAt) + head;
  float of_tile = 0.0f;
#pragma unroll
  for (int i = 0; i < Block::kKeyPieces; ++i) of_tile += sums[i * Config::kHeadTile];
  return __fmaf_rn(sum, factor, of_tile);
}

// What the sums of values of `head` are divided by, inverted.
__device__ __forceinline__ float inverse_of(float sum, float sink, float running) {
  return 1.0f / (sum + exp2_defined(sink * kLog2E - running));
}
