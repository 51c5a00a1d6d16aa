// Norm and rotation of the queries of a token where they lie in shared memory: several heads of a warp at once.

// By what a lane rotates the pieces of a head that it normalises: the row `turns` of the position, asked for early.
template <class Config>
struct HeadTurns {
  static constexpr int kChunks = ceil_divide(AttentionBlock<Config>::kPieces, 32);
  float2 of[kChunks][4];

  __device__ __forceinline__ HeadTurns(const float2* turns, int lane) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int piece = chunk * 32 + lane;
      const int rotated = piece * 8 - (Config::kHeadDim - Config::kRopeDim);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        of[chunk][i] = make_float2(1.0f, 0.0f);
        if (piece < AttentionBlock<Config>::kPieces && rotated >= 0) of[chunk][i] = turns[rotated / 2 + i];
      }
    }
  }
};

// Divides a warp's heads by their root mean squares and rotates their ends, in place and rounded to BF16 once. kAtOnce
// heads are under way together, and each of as many lanes finds the factor of one: root and division are long, and
// branch.
template <class Config, class Place, int kAtOnce>
__device__ __forceinline__ void normalise_heads(uint8_t* shared, const HeadTurns<Config>& turns, int warp, int lane) {
  using Block = AttentionBlock<Config>;
  constexpr int kChunks = HeadTurns<Config>::kChunks;
  static_assert(Config::kRopeDim % 8 == 0, "a piece is rotated, or it is not");
  static_assert(Config::kHeadTile % (kAtOnce * Block::kWarps) == 0 && kAtOnce <= 32, "whole turns, a lane a head");
  for (int first = warp; first < Config::kHeadTile; first += kAtOnce * Block::kWarps) {
    float values[kAtOnce][kChunks][8] = {};
    float factor_of_lane = 0.0f;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float squares = 0.0f;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int piece = chunk * 32 + lane;
        const uint8_t* from = shared + Place::address(0, first + i * Block::kWarps, piece);
        if (piece < Block::kPieces) load_eight(values[i][chunk], reinterpret_cast<const bf16*>(from));
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = __fmaf_rn(values[i][chunk][j], values[i][chunk][j], squares);
      }
      const float sum = lane_sum(squares);
      if (lane == i) factor_of_lane = sum;
    }
    factor_of_lane = reciprocal_root(factor_of_lane / Config::kHeadDim + Config::kNormEpsilon);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float factor = __shfl_sync(0xFFFFFFFFu, factor_of_lane, i);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int piece = chunk * 32 + lane;
        if (piece >= Block::kPieces) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) values[i][chunk][j] *= factor;
        const int rotated = piece * 8 - (Config::kHeadDim - Config::kRopeDim);
        if (rotated >= 0) rotate_pairs(values[i][chunk], turns.of[chunk], 0);
        const uint32_t to = Place::address(0, first + i * Block::kWarps, piece);
        store_eight(reinterpret_cast<bf16*>(shared + to), values[i][chunk]);
      }
    }
  }
}
