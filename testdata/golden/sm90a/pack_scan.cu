#line 4 "templates/pack_scan/kernel.cu"
// Generated from templates/pack_scan for sm90a. Do not edit.
//
// pack_scan: what must be known of a matrix before it is packed: which E8M0 scales are in use, how far apart they are,
// and whether anything is not finite. Definition: src/quant/pack.rs.
//
//   operand   shape                                  in memory        written / read
//   codes     [n, k]                                 lib/raw.cuh      read
//   scales    NVFP4, MXFP4 by row; FP8 by block      lib/raw.cuh      read
//   in_use    FP8: [scale rows, ceil(k / 128)]       one byte each    written; unused by the other formats
//   range     [4] int32                              see below        written
//
//   block = 256 threads, grid-stride over scale blocks (for FP8 the lanes of a warp share one); no shared memory
//
// range = largest and smallest byte in use, faults, place of the first; before the launch it is {-1, 256, 0, INT_MAX}.
// A fault is a NaN scale, an E4M3 scale with a sign, or a weight that is not finite; its place is counted in scale
// blocks (BF16: in values), row-major.
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
#line 21 "templates/pack_scan/kernel.cu"
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
#line 22 "templates/pack_scan/kernel.cu"
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
#line 23 "templates/pack_scan/kernel.cu"
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
#line 24 "templates/pack_scan/kernel.cu"
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
#line 25 "templates/pack_scan/kernel.cu"

using Format = Nvfp4;

__device__ __forceinline__ void note_in_use(int* range, int exponent) {
  atomicMax(range, exponent);
  atomicMin(range + 1, exponent);
}

__device__ __forceinline__ void note_fault(int* range, int64_t place) {
  atomicAdd(range + 2, 1);
  atomicMin(range + 3, static_cast<int>(place < 0x7FFFFFFF ? place : 0x7FFFFFFE));
}

// One 128 x 128 block by one warp.
__device__ __forceinline__ void scan_fp8_block(const uint8_t* codes, const uint8_t* scales, uint8_t* in_use, int* range,
                                               int64_t block, int n, int k, int half_rows, int lane) {
  const int columns = ceil_divide(k, 128);
  const int scale_row = block / columns;
  const int half_scale_rows = half_rows == 0 ? 0 : ceil_divide(half_rows, 128);
  const bool is_second = half_rows != 0 && scale_row >= half_scale_rows;
  const int first_row = is_second ? half_rows + (scale_row - half_scale_rows) * 128 : scale_row * 128;
  const int end_row = smaller(first_row + 128, half_rows == 0 ? n : is_second ? n : half_rows);
  const int first_k = block % columns * 128;
  bool is_used = false, is_nan = false;
  for (int row = first_row; row < end_row; ++row) {
    for (int at = first_k + lane; at < smaller(first_k + 128, k); at += 32) {
      const uint32_t magnitude = codes[int64_t{row} * k + at] & 0x7Fu;
      is_used |= magnitude != 0;
      is_nan |= magnitude == 0x7F;
    }
  }
  is_used = __any_sync(~0u, is_used);
  is_nan = __any_sync(~0u, is_nan);
  if (lane != 0) return;
  in_use[block] = is_used;
  if (is_used) note_in_use(range, scales[block]);
  if (is_nan || scales[block] == 0xFF) note_fault(range, block);
}

extern "C" __global__ void __launch_bounds__(256)
    pack_scan(const uint8_t* codes, const uint8_t* scales, uint8_t* in_use, int* range, int64_t n_blocks, int n, int k,
              int half_rows) {
  const int64_t thread = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t n_threads = int64_t{gridDim.x} * 256;
  if constexpr (Format::kCodeBits == 8) {
    for (int64_t block = thread / 32; block < n_blocks; block += n_threads / 32) {
      scan_fp8_block(codes, scales, in_use, range, block, n, k, half_rows, threadIdx.x % 32);
    }
  } else {
    for (int64_t block = thread; block < n_blocks; block += n_threads) {
      if constexpr (Format::kCodeBits == 16) {
        if ((reinterpret_cast<const bf16*>(codes)[block] & 0x7F80u) == 0x7F80u) note_fault(range, block);
      } else if constexpr (Format::kScaleIsE4m3) {
        if (scales[block] >= 0x7F) note_fault(range, block);
      } else {
        const uint4 group = reinterpret_cast<const uint4*>(codes)[block];
        if (((group.x | group.y | group.z | group.w) & 0x77777777u) != 0) note_in_use(range, scales[block]);
        if (scales[block] == 0xFF) note_fault(range, block);
      }
    }
  }
}
