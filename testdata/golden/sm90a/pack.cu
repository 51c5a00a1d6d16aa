#line 4 "templates/pack/kernel.cu"
// Generated from templates/pack for sm90a. Do not edit.
//
// pack: a checkpoint matrix [n, k] to the packed layout that every kernel reads, byte for byte as src/quant/pack.rs.
//
//   operand   shape                                  in memory                       written / read
//   codes     [n, k]                                 lib/raw.cuh                     read
//   scales    NVFP4, MXFP4 by row; FP8 by block      lib/raw.cuh                     read
//   in_use    FP8: [scale rows, ceil(k / 128)]       one byte, 1 where a block has   read; unused by the other formats
//                                                    a nonzero code (pack_scan)
//   packed    [row blocks of 64][slabs]              lib/format.cuh                  written, padding included
//
//   block = 256 threads, one unit each: the 16 bytes of a lane, or one scale byte; grid covers all units
//   no shared memory, no barriers
//
// Source rows: as they come, or gate [n / 2] above up [n / 2] interleaved by eights (is_gate_up).
// `shift` is what is added to the exponent byte of a block in use (quant::rebase); NVFP4 needs none.
#line 1 "templates/lib/words.cuh"
// Machine words and the small arithmetic of every kernel: names that NVRTC does not bring along without headers.

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

// The bits of a BF16 value.
using bf16 = uint16_t;

__device__ __forceinline__ float float_of(bf16 value) { return __uint_as_float(uint32_t{value} << 16); }

// Address of shared memory as the 32-bit number that PTX takes.
__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__host__ __device__ constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_divide(a, b) * b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
#line 21 "templates/pack/kernel.cu"
#line 1 "templates/arch/sm90a/bf16.cuh"
// BF16 arithmetic and conversion, each with one rounding.

// mul.rn.bf16x2: the product of two pairs; subnormal operands are not flushed.
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// cvt.rn.bf16x2.f32: two floats to one pair, `low` in the low half.
__device__ __forceinline__ uint32_t pair_from_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// cvt.rn.bf16.f32: one float to the bits of a BF16.
__device__ __forceinline__ uint16_t bf16_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#line 22 "templates/pack/kernel.cu"
#line 1 "templates/arch/sm80/bits.cuh"
// Bit selection in one instruction.

// lop3: (a & mask) | b.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t b) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(mask), "r"(b));
  return out;
}

// mov: half `half` (0 low, 1 high) of `word` in both halves. ptxas folds it into the multiplication that reads it.
__device__ __forceinline__ uint32_t half_twice(uint32_t word, int half) {
  uint32_t twice;
  if (half == 0) {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {low, low};}" : "=r"(twice) : "r"(word));
  } else {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {high, high};}" : "=r"(twice) : "r"(word));
  }
  return twice;
}
#line 23 "templates/pack/kernel.cu"
#line 1 "templates/lib/format.cuh"
// Packed weights: the bytes of a slab, and how a lane turns its bytes into MMA operands.
//
// A matrix is stored in blocks of 64 rows, a block in slabs of kSlabK along k, a slab as codes and then scales:
//
//   codes   [4 row tiles of 16][chunk][lane][16 bytes]      scales  [4 row tiles][g][scale group][row g, row g + 8]
//
// Lane 4 * g + c holds rows g and g + 8 of its tile: the A fragment of mma.sync m16n8k16 and of wgmma with A in
// registers, so one layout serves both. a[0], a[2] belong to row g and a[1], a[3] to row g + 8; a[0], a[1] hold
// k = 2c, 2c + 1 and a[2], a[3] k = 2c + 8, 2c + 9 of a step of 16 k. Definition: src/quant/pack.rs.
//
// The integer pipe has half the rate of the multipliers and bounds the decode, so masks are saved where possible, and
// the halves of a scale word are picked by the multiplication itself (docs/packed_layout.md counts the instructions).
//
// Each format gives: kCodeBits of a weight; kScaleIsE4m3, whether a checkpoint's block scales are E4M3; kSlabK,
// kCodeBytes and kScaleBytes of a slab; kChunks of 16 bytes a lane, row tile and slab; kSteps of 16 k in a chunk;
// Scales, what a lane needs for its two rows, with load_scales; and decode, the only code that knows the format (its
// `step` is a constant once the loop around it is unrolled).
// Exactness: e2m1 * e4m3 needs 6 significant bits and e4m3 * 2^x four, BF16 has 8, and pack keeps every product normal.

constexpr int kRowBlock = 64;  // rows that share a slab
constexpr int kRowTile = 16;   // rows of one fragment

// The four pairs of e2m1 codes of a word to BF16 * 2^-126: sign to bit 15, the other three bits to 8..6. Left shifts
// run on the multipliers, so the integer pipe, which has half the rate, is left with six masks and one shift.
__device__ __forceinline__ void pairs_of_e2m1(uint32_t (&pairs)[4], uint32_t word) {
  pairs[0] = word & 0x81C081C0u;
  pairs[1] = (word << 3) & 0x81C081C0u;
  pairs[2] = and_or(word << 1, 0x80008000u, (word << 6) & 0x01C001C0u);
  pairs[3] = and_or(word << 2, 0x80008000u, (word >> 3) & 0x01C001C0u);
}

// Multiplies the pairs of row g by `upper` and those of row g + 8 by `lower`.
__device__ __forceinline__ void scale_pairs(uint32_t (&a)[4], uint32_t upper, uint32_t lower) {
  a[0] = multiply_pairs(a[0], upper);
  a[1] = multiply_pairs(a[1], lower);
  a[2] = multiply_pairs(a[2], upper);
  a[3] = multiply_pairs(a[3], lower);
}

// Word `step` of a lane's four.
__device__ __forceinline__ uint32_t word_of(const uint4& words, int step) {
  return step == 0 ? words.x : step == 1 ? words.y : step == 2 ? words.z : words.w;
}

struct Nvfp4 {
  static constexpr int kCodeBits = 4;
  static constexpr bool kScaleIsE4m3 = true;
  static constexpr int kSlabK = 64;
  static constexpr int kCodeBytes = 2048;
  static constexpr int kScaleBytes = 256;
  static constexpr int kChunks = 1;
  static constexpr int kSteps = 4;

  // Scale bytes of rows g and g + 8, in turn, for the 4 groups of 16 k.
  struct Scales {
    uint2 bytes;
  };

  static __device__ __forceinline__ Scales load_scales(const uint8_t* tile_scales, int g) {
    return {*reinterpret_cast<const uint2*>(tile_scales + 8 * g)};
  }

  // A byte is E5M3 with 22 added to the exponent; moved up by 224 - 127 more it undoes the 2^-126 of the codes but 2^7.
  // One mask serves two groups of a row: the earlier in the low half, the later in the high one.
  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step) {
    const uint32_t bytes = step < 2 ? scales.bytes.x : scales.bytes.y;
    const uint32_t upper = and_or(bytes << 4, 0x0FF00FF0u, 0x70007000u);
    const uint32_t lower = and_or(bytes >> 4, 0x0FF00FF0u, 0x70007000u);
    pairs_of_e2m1(a, word_of(codes, step));
    scale_pairs(a, half_twice(upper, step % 2), half_twice(lower, step % 2));
  }
};

struct Mxfp4 {
  static constexpr int kCodeBits = 4;
  static constexpr bool kScaleIsE4m3 = false;
  static constexpr int kSlabK = 64;
  static constexpr int kCodeBytes = 2048;
  static constexpr int kScaleBytes = 128;
  static constexpr int kChunks = 1;
  static constexpr int kSteps = 4;

  // Exponent bytes of rows g and g + 8, in turn, for the 2 groups of 32 k.
  struct Scales {
    uint32_t bytes;
  };

  static __device__ __forceinline__ Scales load_scales(const uint8_t* tile_scales, int g) {
    return {*reinterpret_cast<const uint32_t*>(tile_scales + 4 * g)};
  }

  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step) {
    const uint32_t upper = (scales.bytes << 7) & 0x7F807F80u;
    const uint32_t lower = (scales.bytes >> 1) & 0x7F807F80u;
    pairs_of_e2m1(a, word_of(codes, step));
    scale_pairs(a, half_twice(upper, step / 2), half_twice(lower, step / 2));
  }
};

struct Fp8 {
  static constexpr int kCodeBits = 8;
  static constexpr bool kScaleIsE4m3 = false;
  static constexpr int kSlabK = 128;
  static constexpr int kCodeBytes = 8192;
  static constexpr int kScaleBytes = 64;
  static constexpr int kChunks = 4;
  static constexpr int kSteps = 2;

  // Exponent bytes of rows g and g + 8, for all 128 k.
  struct Scales {
    uint32_t bytes;
  };

  static __device__ __forceinline__ Scales load_scales(const uint8_t* tile_scales, int g) {
    return {*reinterpret_cast<const uint16_t*>(tile_scales + 2 * g)};
  }

  // e4m3 codes of row g to BF16 * 2^-120: they stand where a BF16 has them.
  static __device__ __forceinline__ uint32_t upper_of_e4m3(uint32_t word) { return word & 0x87F087F0u; }

  // The same for row g + 8, which fills the gaps.
  static __device__ __forceinline__ uint32_t lower_of_e4m3(uint32_t word) {
    return and_or(word << 4, 0x80F080F0u, (word >> 4) & 0x07000700u);
  }

  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales& scales, int step) {
    const uint32_t first = word_of(codes, 2 * step);
    const uint32_t second = word_of(codes, 2 * step + 1);
    a[0] = upper_of_e4m3(first);
    a[1] = lower_of_e4m3(first);
    a[2] = upper_of_e4m3(second);
    a[3] = lower_of_e4m3(second);
    scale_pairs(a, half_twice((scales.bytes << 7) & 0x7F80u, 0),
                half_twice((scales.bytes >> 1) & 0x7F80u, 0));
  }
};

struct Bf16 {
  static constexpr int kCodeBits = 16;
  static constexpr bool kScaleIsE4m3 = false;
  static constexpr int kSlabK = 64;
  static constexpr int kCodeBytes = 8192;
  static constexpr int kScaleBytes = 0;
  static constexpr int kChunks = 4;
  static constexpr int kSteps = 1;

  struct Scales {};

  static __device__ __forceinline__ Scales load_scales(const uint8_t*, int) { return {}; }

  static __device__ __forceinline__ void decode(uint32_t (&a)[4], const uint4& codes, const Scales&, int) {
    a[0] = codes.x;
    a[1] = codes.y;
    a[2] = codes.z;
    a[3] = codes.w;
  }
};

// Bytes of one slab of a block of 64 rows, and of one row tile's share of it.
template <class Format>
struct Slab {
  static constexpr int kBytes = Format::kCodeBytes + Format::kScaleBytes;
  static constexpr int kTileCodeBytes = Format::kCodeBytes / 4;
  static constexpr int kTileScaleBytes = Format::kScaleBytes / 4;
};
#line 24 "templates/pack/kernel.cu"
#line 1 "templates/lib/raw.cuh"
// Weights as checkpoints hold them, one value at a time. For packing and for the reference, not for speed.
//
//   codes    e2m1: [rows, k / 2], low nibble first   e4m3: [rows, k]   BF16: [rows, k]
//   scales   NVFP4: e4m3 [rows, k / 16]   MXFP4: ue8m0 [rows, k / 32]   FP8: ue8m0 [scale rows, ceil(k / 128)]

struct Raw {
  const uint8_t* codes;
  const uint8_t* scales;
  int k;
};

// Rows of the FP8 scale grid above `row`. Stacked gate and up halves of `half_rows` rows have a grid each.
__device__ __forceinline__ int fp8_scale_row(int row, int half_rows) {
  if (half_rows == 0) return row / 128;
  return row < half_rows ? row / 128 : ceil_divide(half_rows, 128) + (row - half_rows) / 128;
}

__device__ __forceinline__ uint32_t raw_e2m1(const Raw& raw, int64_t row, int k) {
  const uint8_t pair = raw.codes[row * (raw.k / 2) + k / 2];
  return k % 2 == 0 ? pair & 15u : pair >> 4;
}

// The value of a code as a double: exact for every format.
__device__ __forceinline__ double value_of_e2m1(uint32_t code) {
  const uint32_t magnitude = code & 7;
  const double value = magnitude < 2 ? 0.5 * magnitude : ldexp(1.0 + 0.5 * (magnitude & 1), int(magnitude >> 1) - 1);
  return code & 8 ? -value : value;
}

__device__ __forceinline__ double value_of_e4m3(uint32_t byte) {
  const int exponent = byte >> 3 & 15;
  const double mantissa = byte & 7;
  const double value = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8.0 + mantissa, exponent - 10);
  return byte & 0x80 ? -value : value;
}

__device__ __forceinline__ double value_of_ue8m0(uint32_t byte) { return ldexp(1.0, int(byte) - 127); }
#line 25 "templates/pack/kernel.cu"

using Format = Nvfp4;
constexpr bool kIsA8 = false;  // codes stay whole, for FP8 tensor cores

// The matrix and where its rows come from.
struct Source {
  Raw raw;
  const uint8_t* in_use;
  int n;
  int k;
  int is_gate_up;
  int shift;

  __device__ __forceinline__ int row(int packed_row) const {
    return is_gate_up ? packed_row / 16 * 8 + packed_row % 8 + packed_row / 8 % 2 * (n / 2) : packed_row;
  }

  // Bits of the code of one place, zero outside the matrix. A zero scale makes its codes zero.
  __device__ __forceinline__ uint32_t code(int packed_row, int at) const {
    if (packed_row >= n || at >= k) return 0;
    const int64_t from = row(packed_row);
    if constexpr (Format::kCodeBits == 4) {
      const uint32_t code = raw_e2m1(raw, from, at);
      return Format::kScaleIsE4m3 && raw.scales[from * (k / 16) + at / 16] == 0 ? 0 : code;
    } else if constexpr (Format::kCodeBits == 8) {
      return raw.codes[from * k + at];
    } else {
      return reinterpret_cast<const bf16*>(raw.codes)[from * k + at];
    }
  }

  // Byte of the scale that covers one place.
  __device__ __forceinline__ uint8_t scale(int packed_row, int at) const {
    if (packed_row >= n || at >= k) return 0;
    const int64_t from = row(packed_row);
    if constexpr (Format::kScaleIsE4m3) {
      return e5m3_of_e4m3(raw.scales[from * (k / 16) + at / 16]);
    } else if constexpr (Format::kCodeBits == 4) {
      const uint8_t* codes = raw.codes + from * (k / 2) + at / 32 * 16;
      uint32_t magnitudes = 0;
      for (int i = 0; i < 16; ++i) magnitudes |= codes[i] & 0x77u;
      return magnitudes == 0 ? 0 : raw.scales[from * (k / 32) + at / 32] + shift;
    } else {
      const int64_t block = int64_t{fp8_scale_row(from, is_gate_up ? n / 2 : 0)} * ceil_divide(k, 128) + at / 128;
      return in_use[block] ? raw.scales[block] + shift : 0;
    }
  }

  // E4M3 without a sign to E5M3 with 22 added to the exponent: no subnormals are left.
  static __device__ __forceinline__ uint8_t e5m3_of_e4m3(uint32_t byte) {
    const uint32_t mantissa = byte & 7;
    if (byte == 0) return 0;
    if (byte >= 8) return ((byte >> 3) + 15) << 3 | mantissa;
    const uint32_t highest = 31 - __clz(mantissa);
    return (highest + 13) << 3 | (mantissa << (3 - highest) & 7);
  }
};

// A code in its half of a word: sign and magnitude of pair 0 to 3 (src/quant/layout.rs).
__device__ __forceinline__ uint32_t placed_e2m1(uint32_t code, int pair) {
  if (kIsA8) return code << (12 - 4 * pair);
  const int magnitude = pair == 0 ? 6 : pair == 1 ? 3 : pair == 2 ? 0 : 9;
  const int sign = pair == 0 ? 15 : pair == 1 ? 12 : pair == 2 ? 14 : 13;
  return (code & 7) << magnitude | (code >> 3) << sign;
}

// The codes of rows g and g + 8 in their half of a word.
__device__ __forceinline__ uint32_t placed_e4m3(uint32_t upper, uint32_t lower) {
  if (kIsA8) return upper << 8 | lower;
  const uint32_t first = (upper & 0x7F) << 4 | (upper >> 7) << 15;
  return first | (lower & 0xF) | (lower >> 4 & 7) << 12 | (lower >> 7) << 11;
}

// The 16 bytes of one lane: rows g and g + 8 of its tile, kChunkK values of k.
__device__ __forceinline__ uint4 lane_bytes(const Source& source, int first_row, int first_k, int lane) {
  const int row = first_row + lane / 4;
  const int c = lane % 4;
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (Format::kCodeBits == 4) {
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const int k = first_k + 16 * i + 2 * c + 8 * (pair >> 1);
        words[i] |= placed_e2m1(source.code(row + 8 * (pair & 1), k), pair);
        words[i] |= placed_e2m1(source.code(row + 8 * (pair & 1), k + 1), pair) << 16;
      }
    } else if constexpr (Format::kCodeBits == 8) {
      const int k = first_k + i / 2 * 16 + 2 * c + i % 2 * 8;
      words[i] = placed_e4m3(source.code(row, k), source.code(row + 8, k)) |
                 placed_e4m3(source.code(row, k + 1), source.code(row + 8, k + 1)) << 16;
    } else {
      const int k = first_k + 2 * c + 8 * (i >> 1);
      words[i] = source.code(row + 8 * (i & 1), k) | source.code(row + 8 * (i & 1), k + 1) << 16;
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

extern "C" __global__ void __launch_bounds__(256)
    pack(const uint8_t* codes, const uint8_t* scales, const uint8_t* in_use, uint8_t* packed, int n, int k,
         int is_gate_up, int shift) {
  constexpr int kLaneUnits = Format::kCodeBytes / 16;
  constexpr int kUnits = kLaneUnits + Format::kScaleBytes;
  constexpr int kChunkK = Format::kSlabK / Format::kChunks;
  const Source source{{codes, scales, k}, in_use, n, k, is_gate_up, shift};
  const int n_slabs = ceil_divide(k, Format::kSlabK);
  const int64_t unit = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t slab_idx = unit / kUnits;
  if (slab_idx >= int64_t{ceil_divide(n, kRowBlock)} * n_slabs) return;
  const int first_row = slab_idx / n_slabs * kRowBlock;
  const int first_k = slab_idx % n_slabs * Format::kSlabK;
  uint8_t* slab = packed + slab_idx * Slab<Format>::kBytes;
  const int i = unit % kUnits;
  if (i < kLaneUnits) {
    const int tile = i / (kLaneUnits / 4);
    const int chunk = i / 32 % Format::kChunks;
    const uint4 bytes = lane_bytes(source, first_row + tile * kRowTile, first_k + chunk * kChunkK, i % 32);
    *reinterpret_cast<uint4*>(slab + i * 16) = bytes;
  } else {
    constexpr int kGroups = Format::kScaleBytes / kRowBlock;  // of a row in a slab; no thread gets here without scales
    const int byte = i - kLaneUnits;
    const int tile_and_g = byte / larger(2 * kGroups, 1);
    const int group = byte / 2 % larger(kGroups, 1);
    const int row = first_row + tile_and_g / 8 * kRowTile + tile_and_g % 8 + byte % 2 * 8;
    slab[Format::kCodeBytes + byte] = source.scale(row, first_k + group * (Format::kSlabK / larger(kGroups, 1)));
  }
}
