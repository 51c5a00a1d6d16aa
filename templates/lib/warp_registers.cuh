// One warp multiplies its range of slabs with the codes in registers: the shortest way from memory to the tensor cores.
//
// kSlabs slabs are always on their way. When one has been multiplied, its registers are loaded with the slab kSlabs
// further on, so there is no ring, no copy through shared memory and no waiting but for the very bytes that are needed.
// Only tokens lie in shared memory, where all lanes can read them: the first by plain loads and stores, which take less
// time than cp.async and stand on the critical path of a chain of launches, later ones by cp.async.
//
//   weights  |0|1|2|3|                     with kMayPrefetch before the dependency is waited for
//   tokens           ^ |0 1 2 3|  |4|5|    slot i % kSlabs is refilled when all lanes have read it
//   multiply                    |0|1|2|3|4|
//
// Config and the source give what lib/warp_stream.cuh asks for; kStages is 1.

// What a lane holds of one slab.
template <class Config>
struct FetchedSlab {
  using Format = typename Config::Weights;
  uint4 codes[Config::kRowTiles][Format::kChunks];
  typename Format::Scales scales[Config::kRowTiles];
};

// Scales of rows g and g + 8, loaded here and not where they are first used.
__device__ __forceinline__ void fetch_scales(Nvfp4::Scales& to, const uint8_t* tile_scales, int g) {
  to.bytes = load_once(reinterpret_cast<const uint2*>(tile_scales + 8 * g));
}
__device__ __forceinline__ void fetch_scales(Mxfp4::Scales& to, const uint8_t* tile_scales, int g) {
  to.bytes = load_once(reinterpret_cast<const uint32_t*>(tile_scales + 4 * g));
}
__device__ __forceinline__ void fetch_scales(Fp8::Scales& to, const uint8_t* tile_scales, int g) {
  to.bytes = load_once(reinterpret_cast<const uint16_t*>(tile_scales + 2 * g));
}
__device__ __forceinline__ void fetch_scales(Bf16::Scales&, const uint8_t*, int) {}

// Loads one slab; `tile` is the first of this warp's row tiles in it.
template <class Config>
__device__ __forceinline__ void fetch_slab(FetchedSlab<Config>& to, const uint8_t* slab, int tile, int lane) {
  using Format = typename Config::Weights;
  const uint8_t* codes = slab + tile * Slab<Format>::kTileCodeBytes + lane * 16;
  const uint8_t* scales = slab + Format::kCodeBytes + tile * Slab<Format>::kTileScaleBytes;
#pragma unroll
  for (int t = 0; t < Config::kRowTiles; ++t) {
#pragma unroll
    for (int chunk = 0; chunk < Format::kChunks; ++chunk) {
      const uint8_t* from = codes + t * Slab<Format>::kTileCodeBytes + chunk * 512;
      to.codes[t][chunk] = load_once(reinterpret_cast<const uint4*>(from));
    }
  }
#pragma unroll
  for (int t = 0; t < Config::kRowTiles; ++t) {
    fetch_scales(to.scales[t], scales + t * Slab<Format>::kTileScaleBytes, lane / 4);
  }
}

// Brings the tokens of the first kSlabs slabs to shared memory; zeros beyond k and for absent tokens.
template <class Config, class Source>
__device__ __forceinline__ void place_first_tokens(const Source& source, uint8_t* slots, int begin, int end, int lane) {
  using Ring = WarpRing<Config>;
  constexpr int kSlabPieces = Config::kTokens * (Config::Weights::kSlabK / 8);  // pieces of 16 bytes
  constexpr int kPieces = Config::kSlabs * kSlabPieces;
  constexpr int kRounds = ceil_divide(kPieces, 32);
  uint4 pieces[kRounds];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int piece = round * 32 + lane;
    const int i = begin + piece / kSlabPieces;
    const int token = piece % kSlabPieces / (Config::Weights::kSlabK / 8);
    pieces[round] = make_uint4(0, 0, 0, 0);
    if (i < end && (kPieces % 32 == 0 || piece < kPieces)) {
      const int k = source.k(i) + piece % (Config::Weights::kSlabK / 8) * 8;
      const auto tokens = source.tokens(i);
      if (k < source.k_end && token < tokens.count) {
        pieces[round] = *reinterpret_cast<const uint4*>(tokens.row(token) + k);
      }
    }
  }
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int piece = round * 32 + lane;
    const int token = piece % kSlabPieces / (Config::Weights::kSlabK / 8);
    const int place = piece / kSlabPieces * Ring::kTokenBytes + token * Ring::kTokenStride;
    if (kPieces % 32 == 0 || piece < kPieces) {
      *reinterpret_cast<uint4*>(slots + place + piece % (Config::Weights::kSlabK / 8) * 16) = pieces[round];
    }
  }
}

// Streams slabs `begin` to `end` of `source` through registers; arguments are those of stream_through_ring.
template <class Config, class Source>
__device__ __forceinline__ void stream_through_registers(WarpSums<Config>& sums, Source& source, int begin, int end,
                                                         uint8_t* slots, int lane) {
  using Ring = WarpRing<Config>;
  const uint32_t address = smem_address(slots);
  FetchedSlab<Config> slabs[Config::kSlabs];
#pragma unroll
  for (int s = 0; s < Config::kSlabs; ++s) {
    if (begin + s < end) fetch_slab<Config>(slabs[s], source.slab(begin + s), source.tile, lane);
  }
  if constexpr (Source::kMayPrefetch) {
    if constexpr (Config::kSignal == 1) launch_dependents();
    wait_for_dependency();
    if constexpr (Config::kSignal == 2) launch_dependents();
    source.resolve();
  }
  place_first_tokens<Config>(source, slots, begin, end, lane);
  __syncwarp();
  for (int first = begin; first < end; first += Config::kSlabs) {
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      const int i = first + s;
      if (i < end) {
        if (first > begin) {
          wait_copies<Config::kSlabs - 1>();  // one group a slab: that of this slab's tokens is the oldest
          __syncwarp();
        }
        multiply_slab<Config>(
            sums, address + s * Ring::kTokenBytes, lane,
            [&](int tile, int chunk) { return slabs[s].codes[tile][chunk]; },
            [&](int tile) { return slabs[s].scales[tile]; });
        if (i + Config::kSlabs < end) {
          fetch_slab<Config>(slabs[s], source.slab(i + Config::kSlabs), source.tile, lane);
          __syncwarp();  // all lanes have read the slot
          fetch_tokens<Config>(address, s, source.tokens(i + Config::kSlabs), source.k(i + Config::kSlabs),
                               source.k_end, lane);
        }
        commit_copies();
      }
    }
  }
  if constexpr (Config::kSignal == 3) launch_dependents();
  wait_copies<0>();
}

// Streams by the way that the tile has chosen.
template <class Config, class Source>
__device__ __forceinline__ void stream_slabs(WarpSums<Config>& sums, Source& source, int begin, int end,
                                             uint8_t* memory, int lane) {
  if constexpr (Config::kStages == 1) {
    stream_through_registers<Config>(sums, source, begin, end, memory, lane);
  } else {
    stream_through_ring<Config>(sums, source, begin, end, memory, lane);
  }
}
