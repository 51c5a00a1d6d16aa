// Packed weights to FP8: how a lane turns the bytes of a slab into the A fragments of wgmma m64k32 on E4M3.
//
// Slabs are those of lib/format.cuh. A step is 32 k, two of the 16 that the layout knows: word i of a lane's four gives
// a[0], a[1] (i even) or a[2], a[3] (i odd), of row g and row g + 8. Within each 16 the k of a fragment byte
//
//   byte i of column c   k { 2c + 8, 2c, 2c + 9, 2c + 1 }[i]
//
// is what the high and the low nibbles of a word hold in turn; tokens are stored in that order (src/quant/a8.rs), so
// no instruction is spent on sorting. A code is looked up: its scale gives eight bytes, E4M3 of each magnitude times
// the scale, and prmt picks four of them at once.
//
// Each format gives, besides what lib/format.cuh says: kStepsOfChunk of 32 k in 16 bytes of a lane; kHasTable, whether
// blocks keep a table of all scales in shared memory; kScalesSums, whether scales belong to sums of 128 k, as which
// `factors` then gives them; and decode.
// Exactness: MXFP4 and FP8 are exact. NVFP4 rounds magnitude * scale / 6 to E4M3: 1.5, 3 and 6 come out exactly, and
// 1.4 percent of the L2 of random weights are lost. Under E4M3's normal range (scales below 0.1875) it loses more.

// A lane's eight codes of 16 k in two rows: `upper` and `lower` are the tables of row g and row g + 8.
__device__ __forceinline__ void look_up(uint32_t& a_upper, uint32_t& a_lower, uint32_t word, uint2 upper, uint2 lower) {
  const uint32_t low = word & 0x77777777u;  // magnitudes: bit 3 of a selector would spread a sign
  const uint32_t high = low >> 16;
  const uint32_t u = select_bytes(select_bytes(upper.x, upper.y, low), select_bytes(upper.x, upper.y, high), 0x7531u);
  const uint32_t l = select_bytes(select_bytes(lower.x, lower.y, low), select_bytes(lower.x, lower.y, high), 0x6420u);
  a_upper = and_or(word, 0x80808080u, u);
  a_lower = and_or(word << 4, 0x80808080u, l);
}

// E4M3 of the eight magnitudes of E2M1 times an E5M3 scale, divided by 6: 6 * 448 becomes 448.
__device__ __forceinline__ uint2 table_of_e5m3(uint32_t byte) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float scale = __uint_as_float((byte << 20) + (105u << 23));  // exponents count from 22 and from 127
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // The products are exact. A sixth is not, but what it is off by is too little to move a value across a midpoint.
    pairs[i] = e4m3_pair_from_floats(kMagnitudes[2 * i] * scale * (1.0f / 6.0f),
                                     kMagnitudes[2 * i + 1] * scale * (1.0f / 6.0f));
  }
  return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

// What sums of 128 k are multiplied by, for rows g and g + 8.
struct RowFactors {
  float upper = 1.0f;
  float lower = 1.0f;
};

struct Nvfp4A8 : Nvfp4 {
  static constexpr int kStepsOfChunk = 2;
  static constexpr bool kHasTable = true;
  static constexpr bool kScalesSums = false;

  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step,
                                                const uint2* table) {
    const uint32_t bytes = step == 0 ? scales.bytes.x : scales.bytes.y;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint2 upper = table[bytes >> (16 * h) & 0xFFu];
      const uint2 lower = table[bytes >> (16 * h + 8) & 0xFFu];
      look_up(a[2 * h], a[2 * h + 1], word_of(codes, 2 * step + h), upper, lower);
    }
  }
};

struct Mxfp4A8 : Mxfp4 {
  static constexpr int kStepsOfChunk = 2;
  static constexpr bool kHasTable = false;
  static constexpr bool kScalesSums = false;

  // E4M3 of the magnitudes is {0x00, 0x30, 0x38, 0x3C}, {0x40, 0x44, 0x48, 0x4C}; a binade adds 8 to each byte but that
  // of zero. The largest scale of a tensor, 253, makes 6 into 384. No byte borrows from the next down to 242.
  static __device__ __forceinline__ uint2 table_of(uint32_t scales, int byte) {
    const uint32_t exponent = select_bytes(scales, 0, 0x4440u + byte);
    return make_uint2(exponent * 0x08080800u + (0x3C383000u - 247u * 0x08080800u),
                      exponent * 0x08080808u + (0x4C484440u - 247u * 0x08080808u));
  }

  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step,
                                                const uint2*) {
    const uint2 upper = table_of(scales.bytes, 2 * step);
    const uint2 lower = table_of(scales.bytes, 2 * step + 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) look_up(a[2 * h], a[2 * h + 1], word_of(codes, 2 * step + h), upper, lower);
  }
};

struct Fp8A8 : Fp8 {
  static constexpr int kStepsOfChunk = 1;
  static constexpr bool kHasTable = false;
  static constexpr bool kScalesSums = true;

  // Codes are operands; they only have to be sorted by row.
  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales&, int,
                                                const uint2*) {
    a[0] = select_bytes(codes.x, codes.y, 0x3715u);
    a[1] = select_bytes(codes.x, codes.y, 0x2604u);
    a[2] = select_bytes(codes.z, codes.w, 0x3715u);
    a[3] = select_bytes(codes.z, codes.w, 0x2604u);
  }

  // 2^(byte - 247); byte 0, of a block of zeros, gives 0.
  static __device__ __forceinline__ float factor_of(uint32_t byte) {
    return __uint_as_float(static_cast<uint32_t>(larger(static_cast<int>(byte), 120) - 120) << 23);
  }

  static __device__ __forceinline__ RowFactors factors(const Scales& scales) {
    return {factor_of(scales.bytes & 0xFFu), factor_of(scales.bytes >> 8 & 0xFFu)};
  }
};
