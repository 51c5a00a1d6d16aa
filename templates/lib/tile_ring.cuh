// A warp's ring in shared memory for the slabs of one row tile: deep without registers, without barriers between warps.
//
//   stage   codes [kSlabs][chunk][lane][16 B] | scales [kSlabs][row g, row g + 8 of each scale group]
//
// A lane copies the codes that it will decode itself; the scales of a stage are copied by a few lanes for all, which
// __syncwarp covers.
//
// Config gives: Weights (the format), kSlabs (slabs in a stage), kStages.

template <class Config>
struct TileRing {
  using Format = typename Config::Weights;
  static constexpr int kCodeBytes = Slab<Format>::kTileCodeBytes;    // of a slab
  static constexpr int kScaleBytes = Slab<Format>::kTileScaleBytes;  // of a slab
  static constexpr int kScalePieces = larger(kScaleBytes / 16, 1);   // of a slab, 16 bytes each
  static constexpr int kScaleLanes = kScaleBytes / 16 * Config::kSlabs;
  static constexpr int kScaleOffset = Config::kSlabs * kCodeBytes;
  static constexpr int kStageBytes = kScaleOffset + Config::kSlabs * kScaleBytes;
  static constexpr int kBytes = Config::kStages * kStageBytes;
  static_assert(kScaleLanes <= 32, "a lane to a piece of scales");

  // What this lane copies of the codes of row tile `tile` of a slab, and of the scales of a stage that begins there.
  static __device__ __forceinline__ const uint8_t* own_codes(const uint8_t* slab, int tile, int lane) {
    return slab + tile * kCodeBytes + lane * 16;
  }
  static __device__ __forceinline__ const uint8_t* own_scales(const uint8_t* slab, int tile, int lane) {
    const int slab_in_stage = lane / kScalePieces;
    return slab + slab_in_stage * Slab<Format>::kBytes + Format::kCodeBytes + tile * kScaleBytes +
           lane % kScalePieces * 16;
  }

  static __device__ __forceinline__ void fetch_codes(uint32_t stage, int s, const uint8_t* from, int lane) {
#pragma unroll
    for (int chunk = 0; chunk < Format::kChunks; ++chunk) {
      copy_async_16(stage + s * kCodeBytes + chunk * 512 + lane * 16, from + chunk * 512);
    }
  }

  static __device__ __forceinline__ void fetch_scales(uint32_t stage, const uint8_t* from, int lane) {
    copy_async_16(stage + kScaleOffset + lane * 16, from);
  }

  static __device__ __forceinline__ uint4 codes(const uint8_t* stage, int s, int chunk, int lane) {
    return *reinterpret_cast<const uint4*>(stage + s * kCodeBytes + chunk * 512 + lane * 16);
  }
};
