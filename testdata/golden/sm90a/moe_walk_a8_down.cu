#line 4 "templates/moe_staged/kernel.cu"
// Generated from templates/moe_staged for sm90a, moe_staged ranges=8 signal=0 slabs=4 stages=3 tiles=2 tokens=1. Do not edit.
//
// moe_staged: one of the two grouped GEMMs of a block of experts that have few rows each, on mma.sync. What takes time
// is the weights' bytes, so a warp does little besides streaming and decoding them:
//   gate-up   H[p, :] = swiglu(alpha * W13[e] * X[token of p])          for every position or slot p of an expert e
//   down      parts[slot, :] = weight[slot] * alpha * W2[e] * H[p]      from a list of tiles
//             D[t, :] = sum over slots s of weight * alpha * W2[e] * H  walking the slots of a token: no second pass
// With FP8 rows (kRounds) E4M3 values under a scale of their row, which BF16 holds, take the place of X and H.
//
//   operand   shape                        in memory                               read by
//   W         [n_local][n, k]              packed slabs (lib/format.cuh)           every lane, its own 16 bytes
//   X or H    [m or slots, k]              BF16, row-major, 16-byte rows           all warps, once, to shared memory
//   tiles     [count] int4                 expert, position, count (moe_schedule)  every thread
//   counters  [3] uint32                   of templates/quantise, with kRounds     added to, but the first
//   out       H BF16, parts f32 or D BF16  row-major                               the warps of the first range of k
//
//   kWalk = false: grid = (groups of kTiles row tiles, tiles), up to kTokens slots of one expert to a block
//   kWalk = true:  grid = (the same, slots or tokens), one token to a block, no schedule; down's k runs over slots
//   block = kWarps warps, kTiles x kRanges: warp w has row tile w % kTiles of 16 rows and range w / kTiles of slabs
//
//   gate-up  | wait for the grid ahead | fetch W | stage X | multiply, refilling the ring ... | sum over ranges | out
//   down     | fetch W | wait for the grid ahead | stage H | multiply ...                     | sum over ranges | out
//
//   shared memory   rows (lib/staged_rows.cuh), then the sums of all ranges but one; behind `rows_bytes` a ring a warp
//                   (lib/tile_ring.cuh); static: what the block is to do (Work), magnitudes of rows (RowScales)
//   barriers        the block knows what to do; with kRounds magnitudes are there; rows are ready; with kRanges > 1
//                   rows are done with, sums are there; inside a warp __syncwarp and cp.async groups
//
// Gate-up fetches nothing before the wait: which expert is needed is what the grid ahead has written. It lets down go
// only behind its own wait, so when down starts, whatever gate-up has waited for is there: slots, tiles, weights of the
// router. Down reads those at once, past the L1, and waits for H alone.
//
// Tuned: tiles, ranges, tokens, slabs, stages, signal (src/kernels/moe_staged.rs).
// Exactness: operands are exact in BF16; H is rounded to BF16 once, and with kRounds X and H to E4M3, by IEEE division;
// sums run in ascending slot and k. NaN and infinities take no part in a row's scale: they are counted, and become 0.
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
#line 40 "templates/moe_staged/kernel.cu"
#line 1 "templates/arch/sm80/async_copy.cuh"
// Copies from global to shared memory that run while the thread goes on.

// cp.async.cg.shared.global 16: 16 bytes past L1; the L2 is asked for the 256 bytes around them.
__device__ __forceinline__ void copy_async_16(uint32_t smem_to, const void* global_from) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(smem_to), "l"(global_from) : "memory");
}

// The same, reading only `bytes` (0 to 16) and filling the rest with zeros; nothing is read when it is 0.
__device__ __forceinline__ void copy_async_16_or_zeros(uint32_t smem_to, const void* global_from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_to), "l"(global_from), "r"(bytes) : "memory");
}

// cp.async.commit_group: closes the group of all copies since the last one.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group: waits until at most kPending groups of this thread are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#line 41 "templates/moe_staged/kernel.cu"
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
#line 42 "templates/moe_staged/kernel.cu"
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
#line 43 "templates/moe_staged/kernel.cu"
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
#line 44 "templates/moe_staged/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 45 "templates/moe_staged/kernel.cu"
#line 1 "templates/arch/sm90a/fp8.cuh"
// FP8 conversion with one rounding.

// cvt.rn.satfinite.e4m3x2.f32: two floats to two E4M3 codes, `low` in the low byte; nearest, saturating at 448.
__device__ __forceinline__ uint32_t e4m3_pair_from_floats(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
#line 46 "templates/moe_staged/kernel.cu"
#line 1 "templates/arch/sm80/matrix.cuh"
// Warp-level matrix instructions. Fragments: lane = 4 * g + c; see lib/format.cuh for the operands they are made of.

// ldmatrix.x4: four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&to)[4], uint32_t smem_from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(smem_from)
               : "memory");
}

// mma.sync m16n8k16: d += a (16 x 16, BF16) * b (16 x 8, BF16), f32 sums.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#line 47 "templates/moe_staged/kernel.cu"
#line 1 "templates/arch/sm80/reciprocal.cuh"
// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#line 48 "templates/moe_staged/kernel.cu"
#line 1 "templates/lib/elements.cuh"
// Neighbouring elements of a row as f32, and back with one rounding each: BF16 or f32 behind one name.

__device__ __forceinline__ float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// Magnitude for an amax, in which what is not finite takes no part.
__device__ __forceinline__ float finite_magnitude(float x) { return is_finite(x) ? fabsf(x) : 0.0f; }

// A quiet NaN: what stands where there is no value to give.
__device__ __forceinline__ float no_value() { return __int_as_float(0x7FC00000); }

// Eight elements, 16-byte aligned.
__device__ __forceinline__ void load_eight(float (&to)[8], const bf16* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  to[0] = low_float(words.x);
  to[1] = high_float(words.x);
  to[2] = low_float(words.y);
  to[3] = high_float(words.y);
  to[4] = low_float(words.z);
  to[5] = high_float(words.z);
  to[6] = low_float(words.w);
  to[7] = high_float(words.w);
}

__device__ __forceinline__ void load_eight(float (&to)[8], const float* from) {
  const float4 first = reinterpret_cast<const float4*>(from)[0];
  const float4 second = reinterpret_cast<const float4*>(from)[1];
  to[0] = first.x;
  to[1] = first.y;
  to[2] = first.z;
  to[3] = first.w;
  to[4] = second.x;
  to[5] = second.y;
  to[6] = second.z;
  to[7] = second.w;
}

__device__ __forceinline__ void store_eight(bf16* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(pair_from_floats(from[0], from[1]), pair_from_floats(from[2], from[3]),
                                             pair_from_floats(from[4], from[5]), pair_from_floats(from[6], from[7]));
}

__device__ __forceinline__ void store_eight(float* to, const float (&from)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

// One or two elements, aligned to their size together.
__device__ __forceinline__ void load_few(float (&to)[1], const bf16* from) { to[0] = float_of(*from); }
__device__ __forceinline__ void load_few(float (&to)[1], const float* from) { to[0] = *from; }

__device__ __forceinline__ void load_few(float (&to)[2], const bf16* from) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
  to[0] = low_float(pair);
  to[1] = high_float(pair);
}

__device__ __forceinline__ void load_few(float (&to)[2], const float* from) {
  const float2 pair = *reinterpret_cast<const float2*>(from);
  to[0] = pair.x;
  to[1] = pair.y;
}

// Stores elements and leaves in `values` what was stored.
__device__ __forceinline__ void store_few(bf16* to, float (&values)[1]) {
  *to = bf16_from_float(values[0]);
  values[0] = float_of(bf16_from_float(values[0]));
}

__device__ __forceinline__ void store_few(float* to, float (&values)[1]) { *to = values[0]; }

__device__ __forceinline__ void store_few(bf16* to, float (&values)[2]) {
  const uint32_t pair = pair_from_floats(values[0], values[1]);
  *reinterpret_cast<uint32_t*>(to) = pair;
  values[0] = low_float(pair);
  values[1] = high_float(pair);
}

__device__ __forceinline__ void store_few(float* to, float (&values)[2]) {
  *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
}
#line 49 "templates/moe_staged/kernel.cu"
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
#line 50 "templates/moe_staged/kernel.cu"
#line 1 "templates/lib/format_a8_bf16.cuh"
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
#line 51 "templates/moe_staged/kernel.cu"
#line 1 "templates/lib/reciprocal.cuh"
// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
#line 52 "templates/moe_staged/kernel.cu"
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
#line 53 "templates/moe_staged/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 54 "templates/moe_staged/kernel.cu"
#line 1 "templates/lib/epilogue.cuh"
// From f32 sums to stored results: the alpha of a row's segment, and one rounding to BF16 or none.

// Row ranges of a weight with their own alpha (query and key-value parts of a fused projection): rows up to end[0] have
// alpha[0], and so on. The last end covers all rows. Gate and up rows alternate: gate has alpha[0], up alpha[1].
struct Segments {
  int end[4];
  float alpha[4];
};

__device__ __forceinline__ float alpha_of_row(const Segments& segments, int row) {
  if (row < segments.end[0]) return segments.alpha[0];
  if (row < segments.end[1]) return segments.alpha[1];
  if (row < segments.end[2]) return segments.alpha[2];
  return segments.alpha[3];
}

__device__ __forceinline__ void store_value(bf16* to, float value) { *to = bf16_from_float(value); }
__device__ __forceinline__ void store_value(float* to, float value) { *to = value; }
#line 55 "templates/moe_staged/kernel.cu"
#line 1 "templates/lib/staged_rows.cuh"
// Rows of a block of threads in shared memory, whole, and what E4M3 makes of them where that is asked for.
//
//   [row][k in whole slabs + 8] BF16; the 8 more let ldmatrix meet no bank twice; zeros beyond k
//
// A warp takes 32 pieces of 16 bytes of one row at a time, always the same ones: what it rounds it has staged itself.
// The only barrier in between is for the rows' largest magnitudes, which the warps find together.
//
// Config gives: Weights (the format), kWarps, kMostRows, kTokens, kWalk (one row at a time) and kRounds.

// Largest magnitudes of rows that are rounded. A row's scale makes its largest value 448.
template <class Config>
struct RowScales {
  uint32_t amax[Config::kRounds ? Config::kMostRows : 1];  // bits of floats

  // The caller synchronises before rows are rounded.
  __device__ __forceinline__ void clear() {
    if (Config::kRounds && threadIdx.x < Config::kMostRows) amax[threadIdx.x] = 0;
  }

  __device__ __forceinline__ float of(int row) const {
    if constexpr (!Config::kRounds) return 1.0f;
    return fmaxf(__uint_as_float(amax[row]), 1e-30f) / 448.0f;
  }
};

// Two E4M3 codes to BF16, the low byte in the low half: lifted they are values * 2^-120, subnormal ones too.
__device__ __forceinline__ uint32_t pair_of_e4m3(uint32_t codes) {
  constexpr uint32_t kTwoTo120 = 0x7B807B80u;
  const uint32_t low = (codes & 0x80u) << 8 | (codes & 0x7Fu) << 4;
  const uint32_t high = (codes & 0x8000u) << 16 | (codes & 0x7F00u) << 12;
  return multiply_pairs(low | high, kTwoTo120);
}

template <class Config>
struct StagedRows {
  static constexpr int kBatch = 4;  // pieces that a lane has on their way at once
  bf16* rows;
  int k_staged;
  int k;

  __device__ __forceinline__ uint32_t row_bytes() const { return (k_staged + 8) * 2; }

  // What this lane reads of slab `slab_idx`: of row `row` in a walk, or of the token that it brings for ldmatrix. Below
  // 8 tokens the last one stands in for the rest.
  __device__ __forceinline__ uint32_t own_address(int row, int slab_idx, int lane) const {
    if constexpr (!Config::kWalk) row = smaller(lane % 8, Config::kTokens - 1);
    return smem_address(rows) + row * row_bytes() + slab_idx * Config::Weights::kSlabK * 2 + lane / 8 * 16;
  }

  // A warp's share of a row, and this lane's place in it.
  struct Piece {
    int row;
    int k;
  };

  __device__ __forceinline__ int shares_of_row() const { return ceil_divide(k_staged, 256); }

  __device__ __forceinline__ Piece piece(int share) const {
    const int row = Config::kMostRows == 1 ? 0 : share / shares_of_row();
    return {row, (share - row * shares_of_row()) * 256 + static_cast<int>(threadIdx.x % 32) * 8};
  }

  __device__ __forceinline__ bf16* place(Piece at) const { return rows + at.row * (k_staged + 8) + at.k; }

  // Brings rows as they are. The caller synchronises.
  __device__ __forceinline__ void stage(const bf16* from, int64_t ld, const int* row_idx, int n_rows) const {
    const int n_shares = n_rows * shares_of_row();
    for (int first = threadIdx.x / 32; first < n_shares; first += kBatch * Config::kWarps) {
      uint4 loaded[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const Piece at = piece(first + i * Config::kWarps);
        loaded[i] = make_uint4(0, 0, 0, 0);
        if (at.row < n_rows && at.k < k) {
          loaded[i] = __ldcg(reinterpret_cast<const uint4*>(from + row_idx[at.row] * ld + at.k));
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const Piece at = piece(first + i * Config::kWarps);
        if (at.row < n_rows && at.k < k_staged) *reinterpret_cast<uint4*>(place(at)) = loaded[i];
      }
    }
  }

  // Puts zeros where a value of the piece is not finite, and counts them if the row is this block's to count.
  __device__ __forceinline__ void clean(float (&values)[8], Piece at, int row, bool is_counted,
                                        unsigned* counters) const {
    uint32_t first_bad = 0, n_bad = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (is_finite(values[i])) continue;
      if (n_bad == 0) first_bad = i;
      ++n_bad;
      values[i] = 0.0f;
    }
    if (n_bad == 0) return;
    store_eight(place(at), values);
    if (!is_counted) return;
    atomicAdd(counters + 1, n_bad);
    // The least place wins: stored as the complement, so that zero stays "none" and a maximum finds it.
    atomicMax(counters + 2, ~(static_cast<uint32_t>(row) * k + at.k + first_bad));
  }

  // Puts E4M3 values under each row's scale in the place of what this thread has staged. All threads of the block take
  // part, and the caller synchronises afterwards.
  __device__ __forceinline__ void round(const int* row_idx, const bool* is_counted, int n_rows,
                                        RowScales<Config>& scales, unsigned* counters) const {
    const int n_shares = n_rows * shares_of_row();
    for (int share = threadIdx.x / 32; share < n_shares; share += Config::kWarps) {
      const Piece at = piece(share);
      float amax = 0.0f;
      if (at.k < k) {
        float values[8];
        load_eight(values, place(at));
        clean(values, at, row_idx[at.row], is_counted[at.row], counters);
#pragma unroll
        for (int i = 0; i < 8; ++i) amax = fmaxf(amax, fabsf(values[i]));
      }
      const uint32_t largest = __reduce_max_sync(~0u, __float_as_uint(amax));
      if (threadIdx.x % 32 == 0) atomicMax(&scales.amax[at.row], largest);
    }
    __syncthreads();
    for (int share = threadIdx.x / 32; share < n_shares; share += Config::kWarps) {
      const Piece at = piece(share);
      if (at.k >= k) continue;
      const float scale = scales.of(at.row);
      float values[8];
      load_eight(values, place(at));
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = pair_of_e4m3(e4m3_pair_from_floats(values[2 * i] / scale, values[2 * i + 1] / scale));
      }
      *reinterpret_cast<uint4*>(place(at)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
};
#line 56 "templates/moe_staged/kernel.cu"
#line 1 "templates/lib/tile_ring.cuh"
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
#line 57 "templates/moe_staged/kernel.cu"

struct Config {
  using Weights = Nvfp4OfA8;                    // format of W
  static constexpr bool kIsDown = true;    // down, or gate-up
  static constexpr bool kRounds = true;     // FP8 rows
  static constexpr bool kWalk = true;            // one token a block and no schedule, or a list of tiles
  static constexpr int kTiles = 2;           // 16-row tiles of a block
  static constexpr int kRanges = 8;         // warps that share a row tile's k
  static constexpr int kTokens = 1;         // slots of a block
  static constexpr int kSlabs = 4;           // slabs in a stage
  static constexpr int kStages = 3;         // stages in a warp's ring
  static constexpr int kSignal = 0;         // next grid: 0 at once (gate-up: after its wait), 3 last
  static constexpr int kBoundThreads = 1024;  // for ptxas: registers for as many, room for others
  static constexpr int kMostSlots = 32;        // of a token, in a walk
  static constexpr int kRingBytes = 6912;        // of a warp's ring
  static constexpr int kStaticBytes = 1024;    // the host's room for static shared memory
  static constexpr int kWarps = kTiles * kRanges;
  static constexpr int kMostRows = kWalk && kIsDown ? kMostSlots : kTokens;  // staged: slots of a token, or slots
};
static_assert(!Config::kWalk || Config::kTokens == 1, "a walk is for one token");
static_assert(Config::kMostSlots <= 32, "a slot of a walk is a lane's of one warp");
static_assert(Config::kTokens <= 8, "one fragment of tokens");
static_assert(TileRing<Config>::kBytes == Config::kRingBytes, "host and device disagree on shared memory");
static_assert(TileRing<Config>::kStageBytes % 16 == 0, "copies are of 16 bytes");

// Down of a walk goes from one expert to the next.
constexpr bool kCrosses = Config::kWalk && Config::kIsDown;
constexpr int kSlabBytes = Slab<Config::Weights>::kBytes;

// What alpha is multiplied by: with FP8 rows it is that of operands in E4M3.
template <class Format>
__device__ constexpr float alpha_factor() {
  if constexpr (Config::kRounds) return Format::kAlphaFactor;
  return 1.0f;
}

// What a block is to do, in shared memory.
struct Work {
  int expert_idx[Config::kMostRows];  // of each slot of a walk; of a list only the first
  int row_idx[Config::kMostRows];     // row of X or H
  int out_idx[Config::kTokens];       // row of H or parts
  float factor[Config::kMostRows];    // routing weight times alpha, for down
  bool is_counted[Config::kMostRows]; // whether this block counts what is not finite in the row
  int n_tokens;
  int n_slots;
};
static_assert(sizeof(Work) + sizeof(RowScales<Config>) <= Config::kStaticBytes, "the host has left too little room");

// Who else may be asked.
struct Routing {
  const int* experts;
  const float* weights;
  const float* alpha;
  int top_k;
  int expert_offset;
  int n_local;

  // Number of the slot's expert on this rank, or something negative.
  __device__ __forceinline__ int local_expert(int slot) const {
    const int expert = __ldcg(experts + slot) - expert_offset;
    return expert < n_local ? expert : -1;
  }

  // Routing weight times what the sums of this expert are multiplied by.
  __device__ __forceinline__ float down_factor(int slot, int expert) const {
    return __ldcg(weights + slot) * (alpha[expert] * alpha_factor<Config::Weights>());
  }

  // A token that several experts take is counted with the first of them.
  __device__ __forceinline__ bool is_first_of_token(int slot) const {
    for (int other = slot - slot % top_k; other < slot; ++other) {
      if (local_expert(other) >= 0) return false;
    }
    return true;
  }
};

// Fills in `work` from the tile of the list; thread i takes slot i.
__device__ __forceinline__ void work_from_list(Work& work, int4 tile, const int* slot_of, const Routing& routing) {
  if (threadIdx.x == 0) {
    work.expert_idx[0] = tile.x;
    work.n_tokens = tile.z;
    work.n_slots = 1;
  }
  const int i = threadIdx.x;
  if (i >= smaller(tile.z, Config::kTokens)) return;
  const int position = tile.y + i;
  const int slot = __ldcg(slot_of + position);
  work.row_idx[i] = Config::kIsDown ? position : slot / routing.top_k;
  work.out_idx[i] = Config::kIsDown ? slot : position;
  if constexpr (Config::kIsDown) work.factor[i] = routing.down_factor(slot, tile.x);
  if constexpr (Config::kRounds) {
    work.is_counted[i] = blockIdx.x == 0 && (Config::kIsDown || routing.is_first_of_token(slot));
  }
}

// Fills in `work` for one slot (gate-up) or all local slots of one token (down), a lane of the first warp each: one
// after the other, six slots would cost six times the latency of two loads. Foreign ones are left out, the order stays.
__device__ __forceinline__ void work_from_slots(Work& work, int n_tokens, const Routing& routing) {
  if (threadIdx.x >= 32) return;
  const int first = Config::kIsDown ? blockIdx.y * routing.top_k : blockIdx.y;
  const int slot = first + threadIdx.x;
  const bool is_own = threadIdx.x < (Config::kIsDown ? routing.top_k : 1) && slot < n_tokens * routing.top_k;
  const int expert = is_own ? routing.local_expert(slot) : -1;
  const unsigned local = __ballot_sync(~0u, expert >= 0);
  if (expert >= 0) {
    const int i = __popc(local & ((1u << threadIdx.x) - 1));
    work.expert_idx[i] = expert;
    work.row_idx[i] = Config::kIsDown ? slot : slot / routing.top_k;
    if constexpr (Config::kIsDown) work.factor[i] = routing.down_factor(slot, expert);
    if constexpr (!Config::kIsDown) work.out_idx[0] = slot;
    if constexpr (Config::kRounds) {
      work.is_counted[i] = blockIdx.x == 0 && (Config::kIsDown || routing.is_first_of_token(slot));
    }
  }
  if (threadIdx.x == 0) {
    work.n_slots = __popc(local);
    // A token without a local slot still gets its row of zeros.
    work.n_tokens = Config::kIsDown ? first < n_tokens * routing.top_k : __popc(local);
  }
}

// What a warp multiplies: groups of kSlabs slabs, the last of an expert maybe fewer, of its row tile in one expert, or
// in the experts of a token's slots in turn.
struct Range {
  int begin;  // groups
  int end;
  int slot;   // of the first group
  int slab;   // of its expert

  __device__ __forceinline__ Range(int n_slots, int n_slabs, int range) {
    const int of_slot = ceil_divide(n_slabs, Config::kSlabs);
    begin = n_slots * of_slot * range / Config::kRanges;
    end = n_slots * of_slot * (range + 1) / Config::kRanges;
    slot = kCrosses && begin < end ? begin / of_slot : 0;
    slab = (begin - slot * of_slot) * Config::kSlabs;
  }
};

// Where the group stands that is fetched next.
struct NextGroup {
  const uint8_t* codes;   // what this lane copies of slab 0 of expert 0
  const uint8_t* scales;
  const int* expert_idx;  // of each slot
  int64_t expert_bytes;
  int n_slabs;            // of an expert
  int slot;
  int slab;
  int64_t at;             // bytes from slab 0 of expert 0

  __device__ __forceinline__ void start(int first_slot, int first_slab) {
    slot = first_slot;
    slab = first_slab;
    at = expert_idx[slot] * expert_bytes + int64_t{slab} * kSlabBytes;
  }

  // Goes on to the group behind it, which must be there.
  __device__ __forceinline__ void advance() {
    slab += Config::kSlabs;
    at += Config::kSlabs * kSlabBytes;
    if (kCrosses && slab >= n_slabs) start(slot + 1, 0);
  }

  __device__ __forceinline__ bool has(int s) const { return slab + s < n_slabs; }

  // Starts the copies of the group, number `group`, to a stage of this warp's ring, if it is there, and goes on.
  __device__ __forceinline__ void fetch_and_advance(int group, int end, uint32_t stage, int lane) {
    if (group < end) {
      fetch(stage, lane);
      if (group + 1 < end) advance();
    }
    commit_copies();
  }

  // Starts the copies of the group.
  __device__ __forceinline__ void fetch(uint32_t stage, int lane) const {
    using Ring = TileRing<Config>;
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      if (has(s)) Ring::fetch_codes(stage, s, codes + at + s * kSlabBytes, lane);
    }
    if (lane < Ring::kScaleLanes && has(lane / Ring::kScalePieces)) Ring::fetch_scales(stage, scales + at, lane);
  }
};

// Groups of row tile `row_tile` of experts of n rows; `start` gives the first.
__device__ __forceinline__ NextGroup groups_of(const uint8_t* weights, const int* expert_idx, int row_tile, int n,
                                               int n_slabs, int lane) {
  using Ring = TileRing<Config>;
  constexpr int kTilesOfBlock = kRowBlock / kRowTile;
  const int64_t block_bytes = int64_t{n_slabs} * kSlabBytes;
  const uint8_t* first_slab = weights + row_tile / kTilesOfBlock * block_bytes;
  NextGroup next;
  next.codes = Ring::own_codes(first_slab, row_tile % kTilesOfBlock, lane);
  next.scales = Ring::own_scales(first_slab, row_tile % kTilesOfBlock, lane);
  next.expert_idx = expert_idx;
  next.expert_bytes = ceil_divide(n, kRowBlock) * block_bytes;
  next.n_slabs = n_slabs;
  return next;
}

// Multiplies one slab of a stage with up to eight tokens; `rows` is what this lane reads of theirs.
__device__ __forceinline__ void multiply_slab(float (&sums)[4], uint32_t rows, const uint8_t* stage, int s, int lane) {
  using Format = Config::Weights;
  using Ring = TileRing<Config>;
  const auto scales = Format::load_scales(stage + Ring::kScaleOffset + s * Ring::kScaleBytes, lane / 4);
  uint4 words;
#pragma unroll
  for (int step = 0; step < Format::kSlabK / 16; ++step) {
    uint32_t b[4];  // of this step of 16 k and the next
    if (step % 2 == 0) load_matrix_x4(b, rows + step * 32);
    if (step % Format::kSteps == 0) words = Ring::codes(stage, s, step / Format::kSteps, lane);
    uint32_t a[4];
    Format::decode(a, words, scales, step % Format::kSteps);
    multiply_add(sums, a, b[step % 2 * 2], b[step % 2 * 2 + 1]);
  }
}

// Starts the copies of the first groups of a range, as many as the ring holds but one.
__device__ __forceinline__ void fill_ring(NextGroup& next, const Range& range, uint32_t ring, int lane) {
  if (range.begin < range.end) next.start(range.slot, range.slab);
#pragma unroll
  for (int stage = 0; stage < Config::kStages - 1; ++stage) {
    next.fetch_and_advance(range.begin + stage, range.end, ring + stage * TileRing<Config>::kStageBytes, lane);
  }
}

// Multiplies the groups of a range, the first of which are on their way.
__device__ __forceinline__ void multiply_range(float (&sums)[4], NextGroup& next, const Range& range,
                                               const uint8_t* ring, const StagedRows<Config>& staged, const Work& work,
                                               const RowScales<Config>& scales, int lane) {
  using Ring = TileRing<Config>;
  constexpr uint32_t kSlabRowBytes = Config::Weights::kSlabK * 2;
  int slot = range.slot, slab = range.slab, place = 0;
  uint32_t rows = staged.own_address(slot, slab, lane);
  float slot_sums[4] = {};
#pragma unroll 1
  for (int group = range.begin; group < range.end; ++group) {
    wait_copies<Config::kStages - 2>();
    __syncwarp();
    const int free_place = place == 0 ? Config::kStages - 1 : place - 1;  // all lanes have read what was there
    const uint32_t free_stage = smem_address(ring) + free_place * Ring::kStageBytes;
    next.fetch_and_advance(group + Config::kStages - 1, range.end, free_stage, lane);
    const uint8_t* stage = ring + place * Ring::kStageBytes;
    if (slab + Config::kSlabs <= next.n_slabs) {
#pragma unroll
      for (int s = 0; s < Config::kSlabs; ++s) multiply_slab(slot_sums, rows + s * kSlabRowBytes, stage, s, lane);
    } else {
#pragma unroll 1
      for (int s = 0; slab + s < next.n_slabs; ++s) multiply_slab(slot_sums, rows + s * kSlabRowBytes, stage, s, lane);
    }
    place = place == Config::kStages - 1 ? 0 : place + 1;
    slab += Config::kSlabs;
    rows += Config::kSlabs * kSlabRowBytes;
    if (!kCrosses || (slab < next.n_slabs && group + 1 < range.end)) continue;
    // A slot's sum is scaled when its last slab is done, or where this warp's range ends: both parts of a slot that two
    // warps share have the same factor, so it does not matter where the ranges cut.
    const float factor = work.factor[slot] * scales.of(slot);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      sums[j] = __fmaf_rn(slot_sums[j], factor, sums[j]);
      slot_sums[j] = 0.0f;
    }
    slab = 0;
    rows = staged.own_address(++slot, 0, lane);
  }
  wait_copies<0>();
  if constexpr (!kCrosses) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = slot_sums[j];
  }
}

// Adds what the ranges of k have summed, in ascending order, for the warps of the first; the others get nothing.
__device__ __forceinline__ void sum_ranges(float (&sums)[4], uint8_t* shared, int tile, int range, int lane) {
  if constexpr (Config::kRanges == 1) return;
  float4* parts = reinterpret_cast<float4*>(shared) + tile * 32 + lane;
  __syncthreads();  // every warp is done with the rows, which the sums now overwrite
  if (range > 0) parts[(range - 1) * Config::kTiles * 32] = make_float4(sums[0], sums[1], sums[2], sums[3]);
  __syncthreads();
  if (range > 0) return;
#pragma unroll
  for (int part = 0; part < Config::kRanges - 1; ++part) {
    const float4 more = parts[part * Config::kTiles * 32];
    sums[0] += more.x;
    sums[1] += more.y;
    sums[2] += more.z;
    sums[3] += more.w;
  }
}

// Where the results of a block go.
struct Results {
  bf16* h;                  // gate-up: H, row 0
  float* parts;             // down from a list: parts, row 0
  bf16* d;                  // down of a walk: D, this token
  int64_t ld;
  int n;
  float alpha_gate;
  float alpha_up;
  float limit;

  // Stores what this lane has of the tile that begins at `first_row`: rows g and g + 8 of tokens 2c and 2c + 1.
  __device__ __forceinline__ void store(const float (&sums)[4], const Work& work, const RowScales<Config>& scales,
                                        int first_row, int lane) const {
    const int g = lane / 4;
    if (first_row + g >= n) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int token = lane % 4 * 2 + j;
      if (token >= smaller(work.n_tokens, Config::kTokens)) return;
      if constexpr (!Config::kIsDown) {
        // Gate and up rows alternate by eights, so a tile holds both halves of each of its columns.
        const float gate = sums[j] * scales.of(token) * alpha_gate;
        const float up = sums[2 + j] * scales.of(token) * alpha_up;
        store_value(h + work.out_idx[token] * ld + first_row / 2 + g, swiglu(gate, up, limit));
      } else if constexpr (Config::kWalk) {
        store_value(d + first_row + g, sums[j]);
        if (first_row + g + 8 < n) store_value(d + first_row + g + 8, sums[2 + j]);
      } else {
        const float factor = work.factor[token] * scales.of(token);
        float* to = parts + work.out_idx[token] * ld + first_row + g;
        to[0] = sums[j] * factor;
        if (first_row + g + 8 < n) to[8] = sums[2 + j] * factor;
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(Config::kBoundThreads)
    moe_staged(const uint8_t* __restrict__ weights, const bf16* from, unsigned* counters, bf16* h, float* parts,
               bf16* d, const int4* tiles, const int* tile_count, const int* slot_of, const int* experts,
               const float* routing, const float* alpha, const int* m_on_device, int64_t ld_from, int64_t ld_out, int m,
               int n, int k, int top_k, int expert_offset, int n_local, int rows_bytes, float limit) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Work work;
  __shared__ RowScales<Config> scales;
  if constexpr (!Config::kIsDown) wait_for_dependency();
  if constexpr (Config::kSignal == 0) launch_dependents();
  scales.clear();
  const Routing known{experts, routing, alpha, top_k, expert_offset, n_local};
  int4 listed = make_int4(0, 0, 0, 0);
  if constexpr (Config::kWalk) {
    work_from_slots(work, actual_tokens(m_on_device, m), known);
    __syncthreads();
  } else {
    // The list has room for the whole grid: both loads are on their way at once.
    listed = __ldcg(tiles + blockIdx.y);
    if (blockIdx.y >= __ldcg(tile_count)) listed.z = 0;
  }
  // Beyond the list, and for a slot of a foreign expert.
  if ((Config::kWalk ? work.n_tokens : listed.z) == 0) {
    wait_for_dependency();
    return;
  }

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile = warp % Config::kTiles, range = warp / Config::kTiles;
  const int row_tile = blockIdx.x * Config::kTiles + tile;
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int list_expert = listed.x;
  NextGroup next = groups_of(weights, Config::kWalk ? work.expert_idx : &list_expert, row_tile, n, n_slabs, lane);
  const int n_slots = row_tile * kRowTile < n ? kCrosses ? work.n_slots : 1 : 0;  // the last block may lack rows
  const Range own(n_slots, n_slabs, range);
  uint8_t* ring = shared + rows_bytes + warp * TileRing<Config>::kBytes;
  fill_ring(next, own, smem_address(ring), lane);
  if constexpr (!Config::kWalk) {
    work_from_list(work, listed, slot_of, known);
    __syncthreads();
  }
  // Down's alpha is in the factors. Loaded now, so that nobody waits for it at the end.
  const float* gate_up = alpha + 2 * (Config::kIsDown ? 0 : next.expert_idx[0]);
  const float alpha_gate = Config::kIsDown ? 1.0f : gate_up[0] * alpha_factor<Config::Weights>();
  const float alpha_up = Config::kIsDown ? 1.0f : gate_up[1] * alpha_factor<Config::Weights>();
  if constexpr (Config::kIsDown) wait_for_dependency();

  const int n_rows = kCrosses ? work.n_slots : smaller(work.n_tokens, Config::kTokens);
  const StagedRows<Config> rows{reinterpret_cast<bf16*>(shared), n_slabs * Config::Weights::kSlabK, k};
  rows.stage(from, ld_from, work.row_idx, n_rows);
  if constexpr (Config::kRounds) rows.round(work.row_idx, work.is_counted, n_rows, scales, counters);
  __syncthreads();
  float sums[4] = {};
  multiply_range(sums, next, own, ring, rows, work, scales, lane);
  if constexpr (Config::kSignal == 3) launch_dependents();
  sum_ranges(sums, shared, tile, range, lane);
  if (range > 0) return;
  const Results results{h, parts, d + blockIdx.y * ld_out, ld_out, n, alpha_gate, alpha_up, limit};
  results.store(sums, work, scales, row_tile * kRowTile, lane);
}
