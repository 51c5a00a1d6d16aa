// One warpgroup multiplies 64 rows of packed weights with kTokens FP8 tokens, block of 128 k by block, on wgmma.
//
// The rows are decoded to E4M3 in registers and are the A operand; the tokens lie in shared memory, K-major and
// swizzled by 128 bytes, and are the B operand. While the tensor cores work on one block of 128 k the warps decode the
// next into a second set of registers.
//
//   stage    tokens [kBlockK / 128][kTokens][128 B] | weights [consumer][kSlabs slabs of 64 rows]
//
//   decode   |k0|k1|  |k2|  |k3|              two register sets, even and odd blocks of 128 k
//   wgmma       |=k0=|=k1=|=k2=|=k3=|         without promotion: a group is waited for when the next has been issued
//   wgmma       |=k0=|  |=k1=|  |=k2=|        with it: the chain ends, its sums are added in f32, the next begins
//   promote           |p|     |p|             another warpgroup keeps the tensor cores busy
//
// Hopper's FP8 tensor cores keep about 13 bits behind the point of the largest term, so a long chain loses what is
// small beside its sum. A chain ends after kPromote k and is added to f32 registers; 0 never ends it.
//
// A tile may be narrower than kTokens, in steps of kStep: as in lib/warpgroup_multiply.cuh.
//
// Config gives: Weights (the format), kTokens, kBlockK, kStages, kConsumers, kPromote, kCluster.

template <class Config>
struct Stage {
  using Format = typename Config::Weights;
  static constexpr int kSlabs = Config::kBlockK / Format::kSlabK;
  static constexpr int kWeightBytes = kSlabs * Slab<Format>::kBytes;  // of one consumer
  static constexpr int kBoxBytes = Config::kTokens * 128;             // 128 k of all tokens
  static constexpr int kTokenBytes = Config::kBlockK / 128 * kBoxBytes;
  static constexpr int kWeightOffset = kTokenBytes;
  static constexpr int kBytes = round_up(kWeightOffset + Config::kConsumers * kWeightBytes, 1024);
};

// Sums of one thread, for each 8 tokens: (row g, tokens 2c, 2c + 1), (row g + 8, the same), in its warp's 16 rows.
template <class Config>
using GroupSums = float[Config::kTokens / 2];

// Registers of one block of 128 k: four steps of 32.
using Fragments = uint32_t[4][4];

// Decodes block `block` (128 k) of a stage's weights for this lane, and gives what its sums are to be multiplied by.
// `weights` is the consumer's part of the stage.
template <class Config>
__device__ __forceinline__ RowFactors decode_block(Fragments& a, const uint8_t* weights, const uint2* table, int block,
                                                   int warp, int lane) {
  using Format = typename Config::Weights;
  constexpr int kStepsOfSlab = Format::kSlabK / 32;
  RowFactors factors;
  typename Format::Scales scales;
  uint4 words;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int slab_idx = (block * 4 + step) / kStepsOfSlab;
    const int step_in_slab = step % kStepsOfSlab;
    const uint8_t* slab = weights + slab_idx * Slab<Format>::kBytes;
    if (step_in_slab == 0) {
      scales = Format::load_scales(slab + Format::kCodeBytes + warp * Slab<Format>::kTileScaleBytes, lane / 4);
    }
    if (step_in_slab % Format::kStepsOfChunk == 0) {
      const uint8_t* codes = slab + warp * Slab<Format>::kTileCodeBytes + lane * 16;
      words = *reinterpret_cast<const uint4*>(codes + step_in_slab / Format::kStepsOfChunk * 512);
    }
    Format::decode(a[step], words, scales, step_in_slab % Format::kStepsOfChunk, table);
    if constexpr (Format::kScalesSums) factors = Format::factors(scales);
  }
  return factors;
}

// Issues the four wgmma of one block of 128 k for `width` tokens, and closes their group. `box` is the address of its
// tokens; the first of a chain begins at zero.
template <class Config, int kStep, bool kBeginsChain>
__device__ __forceinline__ void multiply_block(GroupSums<Config>& sums, const Fragments& a, uint32_t box, int width) {
  wgmma_fence();
  const uint64_t tokens = swizzled_descriptor(box);
  if constexpr (kStep == Config::kTokens) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      // 32 k are 32 bytes, and the descriptor counts 16.
      wgmma_generated(sums, a[step], tokens + step * 2, step > 0 || !kBeginsChain);
    }
    wgmma_commit();
  } else {
    wgmma_of_width(sums, a, tokens, width, !kBeginsChain);
  }
}

// Adds the sums of a chain, which has ended, to the totals. A factor is a power of two, so each addition rounds once.
template <class Config>
__device__ __forceinline__ void promote(GroupSums<Config>& totals, GroupSums<Config>& sums, const RowFactors& factors) {
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) {
    if constexpr (Config::Weights::kScalesSums) {
      totals[i] = __fmaf_rn(sums[i], i % 4 < 2 ? factors.upper : factors.lower, totals[i]);
    } else {
      totals[i] += sums[i];
    }
  }
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
}

// One lane of each warp reports a slot free, to every block that writes into it: all of the cluster.
template <class Config>
__device__ __forceinline__ void release(Ring<Config::kStages> ring, int slot, int lane) {
  if constexpr (Config::kCluster == 1) {
    if (lane == 0) barrier_arrive(ring.free(slot));
  } else {
    if (lane < Config::kCluster) barrier_arrive_in_cluster(address_in_block(ring.free(slot), lane));
  }
}

// Where a warpgroup stands in a run of stages. `width` is a multiple of kStep, the same for all threads of the
// warpgroup. kTokensByThreads: the tokens were written by threads (cp.async), which the tensor cores must be told of.
template <class Config, bool kTokensByThreads, int kStep>
struct Place {
  RingPosition<Config::kStages> position;
  int width;
  int previous_slot = -1;  // of the stage whose wgmma may still be under way
  RowFactors factors;      // of the chain that is under way, if it is of 128 k
};

// Decodes block `kBlock` of the stage at `place` and multiplies it. kEndsChain: after the chain before has ended and
// was added to the totals. The wgmma of the block are still under way when this returns, those before it are not.
template <class Config, int kBlock, bool kEndsChain, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_next(GroupSums<Config>& totals, GroupSums<Config>& sums, Fragments& a,
                                              Place<Config, kTokensByThreads, kStep>& place, const uint8_t* stages,
                                              const uint2* table, Ring<Config::kStages> ring, int consumer, int lane) {
  using Stage = Stage<Config>;
  if constexpr (kBlock == 0) {
    barrier_wait(ring.full(place.position.slot), place.position.parity);
    if constexpr (kTokensByThreads) fence_async_proxy();
  }
  const uint8_t* stage = stages + place.position.slot * Stage::kBytes;
  const uint8_t* weights = stage + Stage::kWeightOffset + consumer * Stage::kWeightBytes;
  const uint32_t box = smem_address(stage) + kBlock * Stage::kBoxBytes;
  const int warp = threadIdx.x / 32 % 4;
  const RowFactors next = decode_block<Config>(a, weights, table, kBlock, warp, lane);
  const bool follows_stage = kBlock == 0 && place.previous_slot >= 0;
  if constexpr (kEndsChain) {
    wgmma_wait<0>();
    if (follows_stage) release<Config>(ring, place.previous_slot, lane);
    promote<Config>(totals, sums, place.factors);  // before the first chain the sums are zeros
    multiply_block<Config, kStep, true>(sums, a, box, place.width);
  } else {
    multiply_block<Config, kStep, false>(sums, a, box, place.width);
    wgmma_wait<1>();
    if (follows_stage) release<Config>(ring, place.previous_slot, lane);
  }
  place.factors = next;
  if constexpr (kBlock == Config::kBlockK / 128 - 1) {
    place.previous_slot = place.position.slot;
    place.position.advance();
  }
}

// Multiplies `n_stages` stages of the ring from `place` on, and leaves it behind them; the last of them is not reported
// free. With promotion `totals` gets the result, without it `sums`; both are zero.
//
// The loop has no exit in its middle: behind one, ptxas loses sight of which registers a wgmma still reads, and lets
// every wgmma wait for the one before (C7513). Blocks that do not fill it follow behind, each in a chain of its own.
template <class Config, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_from(Place<Config, kTokensByThreads, kStep>& place, GroupSums<Config>& totals,
                                              GroupSums<Config>& sums, const uint8_t* stages, const uint2* table,
                                              Ring<Config::kStages> ring, int n_stages, int consumer, int lane) {
  constexpr int kBlocks = Config::kBlockK / 128;  // of a stage
  constexpr int kChain = Config::kPromote / 128;  // blocks of a chain; 0: it never ends
  constexpr int kUnrolled = larger(2, kChain);    // the register sets take turns, and chains begin at known places
  static_assert(kBlocks <= 2 && (kChain <= 2 || kChain == 4), "chains and stages fill the loop");
  static_assert(!Config::Weights::kScalesSums || kChain == 1, "a scale of 128 k belongs to one chain");
  Fragments a[2];
  const int n_blocks = n_stages * kBlocks;
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
  int idx = 0;
#pragma unroll 1
  for (; idx + kUnrolled <= n_blocks; idx += kUnrolled) {
    multiply_next<Config, 0, (kChain > 0)>(totals, sums, a[0], place, stages, table, ring, consumer, lane);
    multiply_next<Config, 1 % kBlocks, kChain == 1>(totals, sums, a[1], place, stages, table, ring, consumer, lane);
    if constexpr (kUnrolled == 4) {
      multiply_next<Config, 0, false>(totals, sums, a[0], place, stages, table, ring, consumer, lane);
      multiply_next<Config, 1 % kBlocks, false>(totals, sums, a[1], place, stages, table, ring, consumer, lane);
    }
  }
  wgmma_wait<0>();
#pragma unroll 1
  for (; idx < n_blocks; idx += kBlocks) {
    multiply_next<Config, 0, (kChain > 0)>(totals, sums, a[0], place, stages, table, ring, consumer, lane);
    wgmma_wait<0>();
    if constexpr (kBlocks == 2) {
      multiply_next<Config, 1, (kChain > 0)>(totals, sums, a[1], place, stages, table, ring, consumer, lane);
      wgmma_wait<0>();
    }
  }
  if constexpr (kChain > 0) {
    promote<Config>(totals, sums, place.factors);
  } else {
#pragma unroll
    for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
  }
}

// A block with one tile, of full width.
template <class Config>
__device__ __forceinline__ void multiply_stages(GroupSums<Config>& totals, GroupSums<Config>& sums,
                                                const uint8_t* stages, const uint2* table, Ring<Config::kStages> ring,
                                                int n_stages, int consumer, int lane) {
  Place<Config, false, Config::kTokens> place{{}, Config::kTokens};
  multiply_from<Config>(place, totals, sums, stages, table, ring, n_stages, consumer, lane);
}

// A tile of `width` tokens, from `position` on, which is left behind it: the producer goes on with the next tile and
// waits for every stage.
template <class Config, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_run(GroupSums<Config>& totals, GroupSums<Config>& sums, const uint8_t* stages,
                                             const uint2* table, Ring<Config::kStages> ring,
                                             RingPosition<Config::kStages>& position, int n_stages, int width,
                                             int consumer, int lane) {
  Place<Config, kTokensByThreads, kStep> place{position, width};
  multiply_from<Config>(place, totals, sums, stages, table, ring, n_stages, consumer, lane);
  position = place.position;
  release<Config>(ring, position.slot_before(), lane);
}
