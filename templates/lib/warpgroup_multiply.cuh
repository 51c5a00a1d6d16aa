// One warpgroup multiplies 64 rows of packed weights with kTokens tokens, stage by stage, on wgmma.
//
// The rows are decoded in registers and are the A operand; the tokens lie in shared memory, K-major and swizzled by 128
// bytes, and are the B operand. While the tensor cores work on one block of 64 k the warps decode the next into a
// second set of registers.
//
//   stage    tokens [kBlockK / 64][kTokens][128 B] | weights [consumer][kSlabs slabs of 64 rows]
//
//   codes    |f1|   |f2|   |f3|           fetched from shared memory before the wgmma that they follow
//   decode   |k0|   |k1|   |k2|   |k3|    two register sets, even and odd blocks of 64 k
//   wgmma       |=k0=| |=k1=| |=k2=|      a group is waited for when the one after it has been issued
//
// Issuing a wgmma with A in registers takes nearly as long as the multiplication, so a warpgroup decodes and multiplies
// in turn, and what fills the tensor cores is that another warpgroup multiplies meanwhile: with two of them decoding a
// block has to take no longer than multiplying it. So nothing stands between the wgmma of one block and the decoding of
// the next that could be done before: not the wait for a stage, not the way of its codes from shared memory.
//
// A tile may be narrower than kTokens, in steps of kStep: its tokens stand at the front of each box, its sums at the
// front of the sums, and only they are multiplied. The width is part of the instruction, so a branch chooses among the
// instructions of all widths; they name the same registers, or ptxas would give each width its own and find too few.
//
// Config gives: Weights (the format), kTokens, kBlockK, kStages, kConsumers.

template <class Config>
struct Stage {
  using Format = typename Config::Weights;
  static constexpr int kSlabs = Config::kBlockK / Format::kSlabK;
  static constexpr int kWeightBytes = kSlabs * Slab<Format>::kBytes;  // of one consumer
  static constexpr int kBoxBytes = Config::kTokens * 128;             // 64 k of the tokens of the widest tile
  static constexpr int kTokenBytes = Config::kBlockK / 64 * kBoxBytes;
  static constexpr int kWeightOffset = kTokenBytes;
  static constexpr int kBytes = round_up(kWeightOffset + Config::kConsumers * kWeightBytes, 1024);
};

// Sums of one thread, for each 8 tokens: (row g, tokens 2c, 2c + 1), (row g + 8, the same), in its warp's 16 rows.
template <class Config>
using GroupSums = float[Config::kTokens / 2];

// Registers of one block of 64 k: four steps of 16.
using Fragments = uint32_t[4][4];

// What a lane needs of a block of 64 k to decode it.
template <class Format>
struct FetchedBlock {
  static constexpr int kWords = 4 / Format::kSteps;
  // BF16 words are fragments themselves, so the compiler lets wgmma read them where they were fetched to: they must not
  // be fetched anew while it does.
  static constexpr bool kMayComeEarly = Format::kCodeBits < 16;
  uint4 words[kWords];
  typename Format::Scales scales;
};

// Fetches block `block` (64 k) of a stage's weights for this lane. `weights` is the consumer's part of the stage.
template <class Format>
__device__ __forceinline__ void fetch_block(FetchedBlock<Format>& to, const uint8_t* weights, int block, int warp,
                                            int lane) {
  constexpr int kBlocksPerSlab = Format::kSlabK / 64;
  const uint8_t* slab = weights + block / kBlocksPerSlab * Slab<Format>::kBytes;
  const int first_word = block % kBlocksPerSlab * FetchedBlock<Format>::kWords;
  const uint8_t* codes = slab + warp * Slab<Format>::kTileCodeBytes + first_word * 512 + lane * 16;
#pragma unroll
  for (int i = 0; i < FetchedBlock<Format>::kWords; ++i) {
    to.words[i] = *reinterpret_cast<const uint4*>(codes + i * 512);
  }
  to.scales = Format::load_scales(slab + Format::kCodeBytes + warp * Slab<Format>::kTileScaleBytes, lane / 4);
}

// Decodes a block that has been fetched; `block` tells which part of the slab it is.
template <class Format>
__device__ __forceinline__ void decode_block(Fragments& a, const FetchedBlock<Format>& fetched, int block) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int step_in_slab = block % (Format::kSlabK / 64) * 4 + step;
    Format::decode(a[step], fetched.words[step / Format::kSteps], fetched.scales, step_in_slab % Format::kSteps);
  }
}

// Issues the four wgmma of one block of 64 k for `width` tokens, and closes their group. `box` is the address of its
// tokens.
template <class Config, int kStep>
__device__ __forceinline__ void multiply_block(GroupSums<Config>& sums, const Fragments& a, uint32_t box, int width) {
  wgmma_fence();
  const uint64_t tokens = swizzled_descriptor(box);
  if constexpr (kStep == Config::kTokens) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_generated(sums, a[step], tokens + step * 2);  // 16 k are 32 bytes, and the descriptor counts 16
    }
    wgmma_commit();
  } else {
    wgmma_of_width(sums, a, tokens, width);
  }
}

// Multiplies `n_stages` stages of the ring from `position` on, and leaves it behind them. One lane of each warp reports
// a stage free when its MMAs are done. `width` is a multiple of kStep, the same for all threads of the warpgroup.
// kTokensByThreads: the tokens were written by threads (cp.async), which the tensor cores must be told of.
template <class Config, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_run(GroupSums<Config>& sums, const uint8_t* stages,
                                             Ring<Config::kStages> ring, RingPosition<Config::kStages>& position,
                                             int n_stages, int width, int consumer, int warp, int lane) {
  using Stage = Stage<Config>;
  using Format = typename Config::Weights;
  constexpr int kBlocks = Config::kBlockK / 64;
  static_assert(kBlocks % 2 == 0, "two register sets take turns inside a stage");
  Fragments a[2];
  FetchedBlock<Format> fetched;
  constexpr bool kMayFetchEarly = FetchedBlock<Format>::kMayComeEarly;
  const auto fetch = [&](int block) {
    const uint8_t* weights = stages + position.slot * Stage::kBytes + Stage::kWeightOffset;
    fetch_block<Format>(fetched, weights + consumer * Stage::kWeightBytes, block, warp, lane);
  };
  const auto begin_stage = [&] {
    barrier_wait(ring.full(position.slot), position.parity);
    if constexpr (kTokensByThreads) fence_async_proxy();
    if constexpr (kMayFetchEarly) fetch(0);
  };
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
  begin_stage();
  for (int stage_idx = 0; stage_idx < n_stages; ++stage_idx) {
    const uint32_t tokens = smem_address(stages + position.slot * Stage::kBytes);
    const int slot_before = position.slot_before();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if constexpr (!kMayFetchEarly) fetch(block);
      decode_block<Format>(a[block % 2], fetched, block);
      if (kMayFetchEarly && block + 1 < kBlocks) fetch(block + 1);
      multiply_block<Config, kStep>(sums, a[block % 2], tokens + block * Stage::kBoxBytes, width);
      if (block + 1 == kBlocks) {
        position.advance();
        if (stage_idx + 1 < n_stages) begin_stage();
      }
      wgmma_wait<1>();
      if (block == 0 && stage_idx > 0 && lane == 0) barrier_arrive(ring.free(slot_before));
    }
  }
  wgmma_wait<0>();
  // A producer that goes on with the next tile waits for the last stage too.
  if (lane == 0) barrier_arrive(ring.free(position.slot_before()));
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
}

// The same for a block with one tile, of full width.
template <class Config, bool kTokensByThreads>
__device__ __forceinline__ void multiply_stages(GroupSums<Config>& sums, const uint8_t* stages,
                                                Ring<Config::kStages> ring, int n_stages, int consumer, int warp,
                                                int lane) {
  RingPosition<Config::kStages> position;
  multiply_run<Config, kTokensByThreads, Config::kTokens>(sums, stages, ring, position, n_stages, Config::kTokens,
                                                          consumer, warp, lane);
}
