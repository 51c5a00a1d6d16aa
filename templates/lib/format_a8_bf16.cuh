// Weights packed for FP8 activations to BF16: how a lane turns the bytes of a slab into the A fragments of mma.sync.
//
// Slabs, lanes and scale bytes are those of lib/format.cuh; only the bits of a code stand elsewhere in their half word,
// as FP8 tensor cores want them (src/quant/layout.rs): the nibble of pair j at bit 12 - 4 * j, the byte of row g in the
// high half and that of row g + 8 in the low one. What a sum is multiplied by is alpha for operands in E4M3, so each
// format also gives kAlphaFactor, which makes it that of operands in BF16.
//
// Exactness: that of lib/format.cuh. NVFP4, which FP8 tensor cores take rounded, is exact here too.

// The four pairs of e2m1 codes of a word to BF16 * 2^-126: sign to bit 15, the other three bits to 8..6.
__device__ __forceinline__ void pairs_of_nibbles(uint32_t (&pairs)[4], uint32_t word) {
  pairs[0] = and_or(word, 0x80008000u, (word >> 6) & 0x01C001C0u);
  pairs[1] = and_or(word << 4, 0x80008000u, (word >> 2) & 0x01C001C0u);
  pairs[2] = and_or(word << 8, 0x80008000u, (word << 2) & 0x01C001C0u);
  pairs[3] = and_or(word << 12, 0x80008000u, (word << 6) & 0x01C001C0u);
}

struct Nvfp4OfA8 : Nvfp4 {
  static constexpr float kAlphaFactor = 128.0f / 6.0f;

  // Scales as in Nvfp4::decode.
  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step) {
    const uint32_t bytes = step < 2 ? scales.bytes.x : scales.bytes.y;
    const uint32_t upper = and_or(bytes << 4, 0x0FF00FF0u, 0x70007000u);
    const uint32_t lower = and_or(bytes >> 4, 0x0FF00FF0u, 0x70007000u);
    pairs_of_nibbles(a, word_of(codes, step));
    scale_pairs(a, half_twice(upper, step % 2), half_twice(lower, step % 2));
  }
};

struct Mxfp4OfA8 : Mxfp4 {
  static constexpr float kAlphaFactor = 64.0f;

  // Scales as in Mxfp4::decode.
  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step) {
    const uint32_t upper = (scales.bytes << 7) & 0x7F807F80u;
    const uint32_t lower = (scales.bytes >> 1) & 0x7F807F80u;
    pairs_of_nibbles(a, word_of(codes, step));
    scale_pairs(a, half_twice(upper, step / 2), half_twice(lower, step / 2));
  }
};

struct Fp8OfA8 : Fp8 {
  static constexpr float kAlphaFactor = 1.0f;

  // e4m3 codes to BF16 * 2^-120: sign to bit 15, the other seven bits to 10..4.
  static __device__ __forceinline__ uint32_t high_bytes(uint32_t word) {
    return and_or(word, 0x80008000u, (word >> 4) & 0x07F007F0u);
  }
  static __device__ __forceinline__ uint32_t low_bytes(uint32_t word) {
    return and_or(word << 8, 0x80008000u, (word << 4) & 0x07F007F0u);
  }

  // Scales as in Fp8::decode: they belong to operands here, and not to sums of 128 k.
  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step) {
    const uint32_t first = word_of(codes, 2 * step);
    const uint32_t second = word_of(codes, 2 * step + 1);
    a[0] = high_bytes(first);
    a[1] = low_bytes(first);
    a[2] = high_bytes(second);
    a[3] = low_bytes(second);
    scale_pairs(a, half_twice((scales.bytes << 7) & 0x7F80u, 0),
                half_twice((scales.bytes >> 1) & 0x7F80u, 0));
  }
};
