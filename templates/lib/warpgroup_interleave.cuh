// One warpgroup multiplies 64 rows of packed weights with kTokens tokens, step by step, on wgmma: the loop of
// lib/warpgroup_multiply.cuh with the decode between the wgmma instead of between blocks of four.
//
// A wgmma with A in registers is issued when the one before it has left the tensor cores, so of four in a row only the
// last runs beside what follows. Here each is followed by the decode of the step after next, which is done when the
// tensor cores ask for it:
//
//   wgmma       |===0===|===1===|===2===|===3===|      a group each; the last two may be under way
//   decode       |2|     |3|     |4|     |5|           into one of four sets of registers
//   codes              |next block|                    fetched when the last step of a block has been decoded
//
// A set is written anew two steps after the wgmma that reads it was issued, and that one has been waited for by then.
// Sums are made in the same order as there, so no bit differs.
//
// Config gives what lib/warpgroup_multiply.cuh asks for. Not for BF16 weights, which have no decode.

// Decodes step `step` (16 k) of a stage; its block has been fetched.
template <class Format>
__device__ __forceinline__ void decode_step(uint32_t (&a)[4], const FetchedBlock<Format>& fetched, int step) {
  const int step_in_slab = step % (Format::kSlabK / 16);
  Format::decode(a, fetched.words[step % 4 / Format::kSteps], fetched.scales, step_in_slab % Format::kSteps);
}

// Issues the wgmma of one step of 16 k for `width` tokens, and closes its group. `tokens` describes its tokens.
template <class Config, int kStep>
__device__ __forceinline__ void multiply_step(GroupSums<Config>& sums, const uint32_t (&a)[4], uint64_t tokens,
                                              int width) {
  wgmma_fence();
  if constexpr (kStep == Config::kTokens) {
    wgmma_generated(sums, a, tokens);
    wgmma_commit();
  } else {
    wgmma_step_of_width(sums, a, tokens, width);
  }
}

// As multiply_run: multiplies `n_stages` stages of the ring from `position` on, and leaves it behind them.
template <class Config, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_run_interleaved(GroupSums<Config>& sums, const uint8_t* stages,
                                                         Ring<Config::kStages> ring,
                                                         RingPosition<Config::kStages>& position, int n_stages,
                                                         int width, int consumer, int warp, int lane) {
  using Stage = Stage<Config>;
  using Format = typename Config::Weights;
  static_assert(FetchedBlock<Format>::kMayComeEarly, "weights that are decoded");
  constexpr int kSteps = Config::kBlockK / 16;
  constexpr int kSets = 4;
  constexpr int kAhead = 2;
  uint32_t a[kSets][4];
  FetchedBlock<Format> fetched;
  const auto fetch = [&](int block) {
    const uint8_t* weights = stages + position.slot * Stage::kBytes + Stage::kWeightOffset;
    fetch_block<Format>(fetched, weights + consumer * Stage::kWeightBytes, block, warp, lane);
  };
  const auto begin_stage = [&] {
    barrier_wait(ring.full(position.slot), position.parity);
    if constexpr (kTokensByThreads) fence_async_proxy();
    fetch(0);
  };
  const auto decode = [&](int step) { decode_step<Format>(a[step % kSets], fetched, step); };
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
  begin_stage();
#pragma unroll
  for (int step = 0; step < kAhead; ++step) decode(step);
  for (int stage_idx = 0; stage_idx < n_stages; ++stage_idx) {
    const uint64_t tokens = swizzled_descriptor(smem_address(stages + position.slot * Stage::kBytes));
    const int slot_before = position.slot_before();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      // 16 k are 32 bytes of a box, 64 k a whole one; the descriptor counts 16 bytes.
      const int place = step / 4 * (Stage::kBoxBytes / 16) + step % 4 * 2;
      multiply_step<Config, kStep>(sums, a[step % kSets], tokens + place, width);
      wgmma_wait<2>();
      // The last step of the stage before is two steps back.
      if (step == 1 && stage_idx > 0 && lane == 0) barrier_arrive(ring.free(slot_before));
      // Behind the last stage these are codes of that stage again, which nobody multiplies.
      decode((step + kAhead) % kSteps);
      if ((step + kAhead) % 4 != 3) continue;
      if (step + kAhead + 1 < kSteps) {
        fetch((step + kAhead + 1) / 4);
      } else {
        position.advance();
        if (stage_idx + 1 < n_stages) begin_stage();
      }
    }
  }
  wgmma_wait<0>();
  // A producer that goes on with the next tile waits for the last stage too.
  if (lane == 0) barrier_arrive(ring.free(position.slot_before()));
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
}
