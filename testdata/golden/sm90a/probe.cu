#line 4 "templates/probe/kernel.cu"
// Generated from templates/probe for sm90a. Do not edit.
//
// probe: shows what device code makes of bits, for comparison with src/quant.
//   step 0   operands[row, k] = what decode makes of a packed matrix, one warp a row tile and slab
//   step 1   out[i] = swiglu(gate[i], up[i], limit)
//
//   operand    shape                        in memory                    written / read
//   packed     [row blocks of 64][slabs]    lib/format.cuh               read (step 0)
//   operands   [padded n, padded k]         BF16                         written (step 0)
//   gate, up   [count]                      f32                          read (step 1)
//   out        [count]                      f32                          written (step 1)
//
//   block = 256 threads; grid-stride over row tiles and slabs, or elements; no shared memory, no barriers
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
#line 18 "templates/probe/kernel.cu"
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
#line 19 "templates/probe/kernel.cu"
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
#line 20 "templates/probe/kernel.cu"
#line 1 "templates/arch/sm80/clamp.cuh"
// The smaller and the larger of two numbers in one instruction that keeps a NaN, as fminf and fmaxf do not.

// min.NaN.f32: NaN if either is.
__device__ __forceinline__ float smaller_or_nan(float a, float b) {
  float out;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}

// max.NaN.f32: NaN if either is.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}
#line 21 "templates/probe/kernel.cu"
#line 1 "templates/arch/sm80/reciprocal.cuh"
// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#line 22 "templates/probe/kernel.cu"
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
#line 23 "templates/probe/kernel.cu"
#line 1 "templates/lib/reciprocal.cuh"
// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
#line 24 "templates/probe/kernel.cu"
#line 1 "templates/lib/swiglu.cuh"
// The activation of gated layers, with defined bits: from FMA and IEEE operations, and a division that rounds as IEEE's
// does. src/quant/math.rs gives the same bits on the CPU.

// x * sigmoid(x) as x / (1 + 2^(-x log2 e)) without a branch: a few of them run side by side. Below -86.5 it is what it
// is there, -2e-36; an infinite x gives NaN. The division rounds as IEEE's does: the divisor is between 1 and 2^125, so
// its reciprocal is rounded right by one step of Newton's, and the quotient by one step with the exact remainder.
__device__ __forceinline__ float silu(float x) {
  constexpr float kLog2E = 1.44269502162933349609375f;  // 0x3FB8AA3B
  constexpr float kWhole = 12582912.0f;                 // 1.5 * 2^23: a sum with it has no fraction
  const float bounded = larger_or_nan(x, -86.5f);
  float t = -bounded * kLog2E;
  t = t < -126.0f ? -126.0f : t;
  const float shifted = t + kWhole;
  const float f = t - (shifted - kWhole);
  float p = __int_as_float(0x3926093E);
  p = __fmaf_rn(p, f, __int_as_float(0x3AAFDFD1));
  p = __fmaf_rn(p, f, __int_as_float(0x3C1D90E4));
  p = __fmaf_rn(p, f, __int_as_float(0x3D6356D4));
  p = __fmaf_rn(p, f, __int_as_float(0x3E75FDF3));
  p = __fmaf_rn(p, f, __int_as_float(0x3F317219));
  p = __fmaf_rn(p, f, 1.0f);
  const float divisor = 1.0f + __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
  const float inverse = reciprocal_in_range(divisor);
  const float quotient = bounded * inverse;
  const float rounded = __fmaf_rn(__fmaf_rn(-divisor, quotient, bounded), inverse, quotient);
  return rounded + (x - x);
}

// silu(min(gate, limit)) * clamp(up, -limit, limit). A NaN in either operand stays, as with fminf it would not.
__device__ __forceinline__ float swiglu(float gate, float up, float limit) {
  gate = smaller_or_nan(gate, limit);
  up = larger_or_nan(smaller_or_nan(up, limit), -limit);
  return silu(gate) * up;
}
#line 25 "templates/probe/kernel.cu"

using Format = Nvfp4;

// One row tile of one slab by one warp.
__device__ __forceinline__ void show_operands(const uint8_t* packed, bf16* operands, int tile, int slab_idx,
                                              int n_slabs) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4, c = lane % 4;
  const uint8_t* slab = packed + (int64_t{tile / 4} * n_slabs + slab_idx) * Slab<Format>::kBytes;
  const uint8_t* codes = slab + tile % 4 * Slab<Format>::kTileCodeBytes + lane * 16;
  const uint8_t* scales = slab + Format::kCodeBytes + tile % 4 * Slab<Format>::kTileScaleBytes;
  const typename Format::Scales row_scales = Format::load_scales(scales, g);
#pragma unroll
  for (int step = 0; step < Format::kSlabK / 16; ++step) {
    const uint4 words = *reinterpret_cast<const uint4*>(codes + step / Format::kSteps * 512);
    uint32_t a[4];
    Format::decode(a, words, row_scales, step % Format::kSteps);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = tile * 16 + g + 8 * (j & 1);
      const int k = slab_idx * Format::kSlabK + step * 16 + 2 * c + 8 * (j >> 1);
      *reinterpret_cast<uint32_t*>(operands + row * n_slabs * Format::kSlabK + k) = a[j];
    }
  }
}

extern "C" __global__ void __launch_bounds__(256)
    probe(int step, const uint8_t* packed, bf16* operands, int row_tiles, int n_slabs, const float* gate,
          const float* up, float* out, int count, float limit) {
  const int thread = blockIdx.x * 256 + threadIdx.x;
  const int n_threads = gridDim.x * 256;
  if (step == 0) {
    for (int i = thread / 32; i < row_tiles * n_slabs; i += n_threads / 32) {
      show_operands(packed, operands, i / n_slabs, i % n_slabs, n_slabs);
    }
  } else {
    for (int i = thread; i < count; i += n_threads) out[i] = swiglu(gate[i], up[i], limit);
  }
}
