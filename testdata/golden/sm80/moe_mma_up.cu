#line 4 "templates/moe_mma/kernel.cu"
// Generated from templates/moe_mma for sm80, moe_mma row_tiles=4 signal=0 slabs=1 stages=3 tokens=8 warps=4. Do not edit.
//
// moe_mma: one of the two grouped GEMMs of a block of experts, on mma.sync; the bandwidth path.
//   gate-up   H[p, :] = swiglu(alpha * W13[e] * X[token of p])          for every position p of an expert e
//   down      parts[slot, :] = weight[slot] * alpha * W2[e] * H[p]
//
//   operand   shape                        in memory                               read by
//   W         [n_local][n, k]              packed slabs (lib/format.cuh)           every lane, its own 16 bytes
//   X or H    [m or slots, k]              BF16, row-major, 16-byte rows           every warp, its own range of k
//   tiles     [count] int4                 expert, position, count (moe_schedule)  every thread
//   out       H BF16, parts f32            row-major                               all threads, after the sum
//
//   grid = (row blocks, tiles), up to kTokens slots of one expert to a block
//   block = kWarps warps, all on the same kRowTiles x 16 rows; warp w takes the w-th range of slabs
//
//   gate-up  | wait for the grid ahead | fetch W, X | multiply, fetching ahead ... | sum over warps | out
//   down     | fetch W | wait for the grid ahead | fetch H | multiply ...          | sum over warps | out
//
//   shared memory   kWarps rings, or tokens where codes go to registers (lib/warp_stream.cuh, lib/warp_registers.cuh);
//                   then the sums of the warps (lib/block_sum.cuh); static: rows and factor of each slot (Work)
//   barriers        rows and factors are there; then none between warps until the sum: rings are done with, sums are
//                   there; inside a warp __syncwarp and cp.async groups
//
// Gate-up fetches nothing before the wait: which expert is needed is what the grid ahead has written. It lets down go
// only behind its own wait, so when down starts, whatever gate-up has waited for is there: slots, tiles, weights of the
// router. Down reads those at once, past the L1, and waits for H alone.
//
// Tuned: row_tiles, tokens, warps, slabs, stages, signal (src/kernels/moe_mma.rs).
// Exactness: operands are exact in BF16; H is rounded to BF16 once; sums run in ascending slot and k.
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
#line 34 "templates/moe_mma/kernel.cu"
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
#line 35 "templates/moe_mma/kernel.cu"
#line 1 "templates/arch/sm80/bf16.cuh"
// BF16 arithmetic and conversion, each with one rounding.

// fma.rn.bf16x2 with -0: the product of two pairs. sm_80 has no mul.bf16x2; adding -0 changes no product.
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
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
#line 36 "templates/moe_mma/kernel.cu"
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
#line 37 "templates/moe_mma/kernel.cu"
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
#line 38 "templates/moe_mma/kernel.cu"
#line 1 "templates/arch/sm80/cluster.cuh"
// Thread-block clusters: not there before sm_90. A block is alone, and the host offers no tile that would call these.

__device__ __forceinline__ void cluster_arrive() { __trap(); }
__device__ __forceinline__ void cluster_wait() { __trap(); }
__device__ __forceinline__ uint32_t address_in_block(uint32_t smem_address, uint32_t) {
  __trap();
  return smem_address;
}
__device__ __forceinline__ void store_in_cluster(uint32_t, float4) { __trap(); }
#line 39 "templates/moe_mma/kernel.cu"
#line 1 "templates/arch/sm80/dependent.cuh"
// Programmatic dependent launch: not there before sm_90, so a launch starts when the one before it has ended.

constexpr bool kHasDependentLaunch = false;

__device__ __forceinline__ void launch_dependents() {}
__device__ __forceinline__ void wait_for_dependency() {}
#line 40 "templates/moe_mma/kernel.cu"
#line 1 "templates/arch/sm80/load.cuh"
// Loads of what is read once.

// ld.global.nc.L1::no_allocate.L2::256B: 16 bytes that no other thread will want.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

// ld.global.nc.L1::no_allocate: the same for 8, 4 and 2 bytes, which a few lanes share.
__device__ __forceinline__ uint2 load_once(const uint2* from) {
  uint2 value;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from));
  return value;
}
__device__ __forceinline__ uint32_t load_once(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(from));
  return value;
}
__device__ __forceinline__ uint16_t load_once(const uint16_t* from) {
  uint16_t value;
  asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(value) : "l"(from));
  return value;
}
#line 41 "templates/moe_mma/kernel.cu"
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
#line 42 "templates/moe_mma/kernel.cu"
#line 1 "templates/arch/sm80/reciprocal.cuh"
// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#line 43 "templates/moe_mma/kernel.cu"
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
#line 44 "templates/moe_mma/kernel.cu"
#line 1 "templates/lib/reciprocal.cuh"
// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
#line 45 "templates/moe_mma/kernel.cu"
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
#line 46 "templates/moe_mma/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 47 "templates/moe_mma/kernel.cu"
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
#line 48 "templates/moe_mma/kernel.cu"
#line 1 "templates/lib/warp_stream.cuh"
// One warp multiplies kRowTiles x 16 rows of packed weights with up to kTokens tokens over its own range of slabs.
//
// Everything goes through a ring in shared memory that belongs to this warp alone. A lane copies exactly the codes that
// it will decode itself, so the ring is a deep FIFO without registers and without barriers between warps; scales and
// tokens are shared among the lanes of the warp, which __syncwarp covers.
//
//   stage   codes [kSlabs][kRowTiles][chunk][lane][16 B] | scales [kSlabs][kRowTiles][..] | tokens [kSlabs][kTokens][k]
//
//   weights  |0|1|2|3|4|5|      fetched kStages - 1 ahead; with kMayPrefetch before the dependency is waited for
//   tokens     ^ |0|1|2|3|4|    fetched after it
//   multiply       |0|1|2|3|    one commit group a stage, and one of the weights that came before the dependency: wait
//                               for the oldest stage, refill its predecessor, multiply
//
// With kStages = 1 there is no ring: lib/warp_registers.cuh holds the codes in registers, and this memory only tokens.
//
// Config gives: Weights (the format), kRowTiles, kTokens, kSlabs (slabs in a stage), kStages, kSignal.
//
// A source, which the kernel writes, gives:
//   slab(i), tile    slab i of a block of 64 rows, and this warp's first row tile in it
//   tokens(i)        those that slab i is multiplied with: count, and row(token), where k = 0 stands
//   k(i), k_end      the first k of slab i, and where k ends
//   kMayPrefetch     whether weights may be fetched before the dependency is waited for; if not, the caller has waited
//   resolve()        with kMayPrefetch, called behind that wait: reads what the grid ahead may have written

template <class Config>
struct WarpRing {
  using Format = typename Config::Weights;
  static constexpr int kTokenTiles = ceil_divide(Config::kTokens, 8);
  static constexpr int kCodeBytes = Config::kRowTiles * Slab<Format>::kTileCodeBytes;    // of a slab
  static constexpr int kScaleBytes = Config::kRowTiles * Slab<Format>::kTileScaleBytes;  // of a slab
  static constexpr int kTokenStride = Format::kSlabK * 2 + 16;  // 16 more: ldmatrix then meets no bank twice
  static constexpr int kTokenBytes = Config::kTokens * kTokenStride;
  static constexpr int kScaleOffset = Config::kSlabs * kCodeBytes;
  static constexpr int kTokenOffset = Config::kStages == 1 ? 0 : kScaleOffset + Config::kSlabs * kScaleBytes;
  static constexpr int kStageBytes = round_up(kTokenOffset + Config::kSlabs * kTokenBytes, 128);
  static constexpr int kBytes = Config::kStages * kStageBytes;
};

// Sums of one warp: [row tile][token tile][fragment], fragment = (row g, tokens 2c, 2c + 1), (row g + 8, the same).
template <class Config>
using WarpSums = float[Config::kRowTiles][WarpRing<Config>::kTokenTiles][4];

// Starts the copies of one slab's codes and scales. `slab` is the slab of the block of 64 rows, `tile` the first of
// this warp's row tiles in it.
template <class Config>
__device__ __forceinline__ void fetch_weights(uint32_t stage, int slab_in_stage, const uint8_t* slab, int tile,
                                              int lane) {
  using Format = typename Config::Weights;
  using Ring = WarpRing<Config>;
  const uint8_t* codes = slab + tile * Slab<Format>::kTileCodeBytes + lane * 16;
  const uint32_t to = stage + slab_in_stage * Ring::kCodeBytes + lane * 16;
#pragma unroll
  for (int run = 0; run < Ring::kCodeBytes / 512; ++run) copy_async_16(to + run * 512, codes + run * 512);
  if (lane < Ring::kScaleBytes / 16) {
    const uint8_t* scales = slab + Format::kCodeBytes + tile * Slab<Format>::kTileScaleBytes + lane * 16;
    copy_async_16(stage + Ring::kScaleOffset + slab_in_stage * Ring::kScaleBytes + lane * 16, scales);
  }
}

// Starts the copies of one slab's tokens: k values `k` to `k + kSlabK`, zeros beyond `k_end` and for absent tokens.
template <class Config, class Tokens>
__device__ __forceinline__ void fetch_tokens(uint32_t stage, int slab_in_stage, const Tokens& tokens, int k, int k_end,
                                             int lane) {
  using Ring = WarpRing<Config>;
  constexpr int kPieces = Config::Weights::kSlabK / 8;  // 16-byte pieces of a token
  const uint32_t to = stage + Ring::kTokenOffset + slab_in_stage * Ring::kTokenBytes;
#pragma unroll
  for (int first = 0; first < Config::kTokens * kPieces; first += 32) {
    const int piece = first + lane;
    const int token = piece / kPieces;
    const int k_piece = k + piece % kPieces * 8;
    if (Config::kTokens * kPieces % 32 == 0 || piece < Config::kTokens * kPieces) {
      const bool is_there = k_piece < k_end && token < tokens.count;
      const bf16* from = is_there ? tokens.row(token) + k_piece : tokens.row(0);
      copy_async_16_or_zeros(to + token * Ring::kTokenStride + piece % kPieces * 16, from, is_there ? 16 : 0);
    }
  }
}

// Multiplies one slab. `tokens` is the address of its tokens in shared memory; words_of(tile, chunk) and
// scales_of(tile) give a lane's codes and scales of a row tile.
template <class Config, class WordsOf, class ScalesOf>
__device__ __forceinline__ void multiply_slab(WarpSums<Config>& sums, uint32_t tokens, int lane, WordsOf words_of,
                                              ScalesOf scales_of) {
  using Format = typename Config::Weights;
  using Ring = WarpRing<Config>;
  const int token = smaller(lane % 8, Config::kTokens - 1);  // below 8 tokens the last one stands in for the rest
  const uint32_t own_tokens = tokens + token * Ring::kTokenStride + lane / 8 * 16;
  typename Format::Scales row_scales[Config::kRowTiles];
  uint4 words[Config::kRowTiles];
#pragma unroll
  for (int tile = 0; tile < Config::kRowTiles; ++tile) row_scales[tile] = scales_of(tile);
  uint32_t b[Ring::kTokenTiles][4];  // of this step of 16 k and the next
#pragma unroll
  for (int step = 0; step < Format::kSlabK / 16; ++step) {
    if (step % 2 == 0) {
#pragma unroll
      for (int t = 0; t < Ring::kTokenTiles; ++t) {
        load_matrix_x4(b[t], own_tokens + t * 8 * Ring::kTokenStride + step * 32);
      }
    }
#pragma unroll
    for (int tile = 0; tile < Config::kRowTiles; ++tile) {
      if (step % Format::kSteps == 0) words[tile] = words_of(tile, step / Format::kSteps);
      uint32_t a[4];
      Format::decode(a, words[tile], row_scales[tile], step % Format::kSteps);
#pragma unroll
      for (int t = 0; t < Ring::kTokenTiles; ++t) {
        multiply_add(sums[tile][t], a, b[t][step % 2 * 2], b[t][step % 2 * 2 + 1]);
      }
    }
  }
}

// Multiplies one slab that has landed in the ring.
template <class Config>
__device__ __forceinline__ void multiply_landed(WarpSums<Config>& sums, const uint8_t* stage, int slab_in_stage,
                                                int lane) {
  using Format = typename Config::Weights;
  using Ring = WarpRing<Config>;
  const uint8_t* codes = stage + slab_in_stage * Ring::kCodeBytes + lane * 16;
  const uint8_t* scales = stage + Ring::kScaleOffset + slab_in_stage * Ring::kScaleBytes;
  const uint32_t tokens = smem_address(stage) + Ring::kTokenOffset + slab_in_stage * Ring::kTokenBytes;
  multiply_slab<Config>(
      sums, tokens, lane,
      [codes](int tile, int chunk) {
        return *reinterpret_cast<const uint4*>(codes + tile * Slab<Format>::kTileCodeBytes + chunk * 512);
      },
      [scales, lane](int tile) {
        return Format::load_scales(scales + tile * Slab<Format>::kTileScaleBytes, lane / 4);
      });
}

// Streams slabs `begin` to `end` of `source` through the ring. kSignal tells where the next grid is let go: 0 at entry,
// by the caller; with kMayPrefetch 1 before the wait for the dependency, 2 after it; 3 when all has been multiplied.
template <class Config, class Source>
__device__ __forceinline__ void stream_through_ring(WarpSums<Config>& sums, Source& source, int begin, int end,
                                                    uint8_t* ring, int lane) {
  using Ring = WarpRing<Config>;
  const uint32_t address = smem_address(ring);
  const int n_stages = ceil_divide(end - begin, Config::kSlabs);
  const auto fetch_stage_weights = [&](int stage_idx, int slot) {
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      const int i = begin + stage_idx * Config::kSlabs + s;
      if (i < end) fetch_weights<Config>(address + slot * Ring::kStageBytes, s, source.slab(i), source.tile, lane);
    }
  };
  const auto fetch_stage_tokens = [&](int stage_idx, int slot) {
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      const int i = begin + stage_idx * Config::kSlabs + s;
      if (i < end) {
        fetch_tokens<Config>(address + slot * Ring::kStageBytes, s, source.tokens(i), source.k(i), source.k_end, lane);
      }
    }
  };

  if constexpr (Source::kMayPrefetch) {
#pragma unroll
    for (int stage = 0; stage < Config::kStages - 1; ++stage) fetch_stage_weights(stage, stage);
    commit_copies();
    if constexpr (Config::kSignal == 1) launch_dependents();
    wait_for_dependency();
    if constexpr (Config::kSignal == 2) launch_dependents();
    source.resolve();
  }
#pragma unroll
  for (int stage = 0; stage < Config::kStages - 1; ++stage) {
    if constexpr (!Source::kMayPrefetch) fetch_stage_weights(stage, stage);
    fetch_stage_tokens(stage, stage);
    commit_copies();
  }

  int slot = 0;
  for (int stage = 0; stage < n_stages; ++stage) {
    wait_copies<Config::kStages - 2>();
    __syncwarp();
    const int ahead = stage + Config::kStages - 1;
    const int ahead_slot = slot == 0 ? Config::kStages - 1 : slot - 1;
    fetch_stage_weights(ahead, ahead_slot);
    fetch_stage_tokens(ahead, ahead_slot);
    commit_copies();
#pragma unroll
    for (int s = 0; s < Config::kSlabs; ++s) {
      const int i = begin + stage * Config::kSlabs + s;
      if (i < end) {
        multiply_landed<Config>(sums, ring + slot * Ring::kStageBytes, s, lane);
      }
    }
    slot = slot == Config::kStages - 1 ? 0 : slot + 1;
  }
  if constexpr (Config::kSignal == 3) launch_dependents();
  wait_copies<0>();
}
#line 49 "templates/moe_mma/kernel.cu"
#line 1 "templates/lib/warp_registers.cuh"
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
#line 50 "templates/moe_mma/kernel.cu"
#line 1 "templates/lib/last_arrival.cuh"
// Blocks that share a tile count their arrivals; the last one finds everything that the others wrote.

// Whether this block is the last of `n_blocks`. Called by every thread that wrote, after its writes; `sync` joins them.
// The ticket is back at zero afterwards, so nothing needs to be cleared between launches.
template <class Sync>
__device__ __forceinline__ bool is_last_arrival(unsigned* ticket, unsigned n_blocks, unsigned* shared_flag,
                                                bool is_leader, Sync sync) {
  __threadfence();
  sync();
  if (is_leader) {
    const unsigned arrived = atomicAdd(ticket, 1u);
    *shared_flag = arrived == n_blocks - 1;
    if (arrived == n_blocks - 1) *ticket = 0;
  }
  sync();
  const bool is_last = *shared_flag != 0;
  if (is_last) __threadfence();
  return is_last;
}
#line 51 "templates/moe_mma/kernel.cu"
#line 1 "templates/lib/block_sum.cuh"
// Adds what the warps of a block have summed, in ascending order of k, and hands each result to `store`.
//
// With kSplitK blocks to a tile every block writes its part to `partials`, and the last one to arrive adds all parts,
// its own included, in ascending order of k: the bits do not depend on who came last. Its ticket is reset for the next
// launch, so nothing needs to be cleared between launches.
//
// With kCluster blocks to a tile nothing goes through memory: token t belongs to block t % kCluster, each block sends
// its part of it there, and when all have met each block adds the parts of its tokens in ascending order of k.
//
// Config gives: kRowTiles, kTokens, kWarps, kSplitK, kCluster.

template <class Config>
struct BlockSum {
  static constexpr int kRows = Config::kRowTiles * kRowTile;
  static constexpr int kThreads = Config::kWarps * 32;
  static constexpr int kTokenTiles = ceil_divide(Config::kTokens, 8);
  static constexpr int kStride = kRows + 4;  // 4 more: the 8 rows and 4 token pairs of a fragment meet no bank twice
  static constexpr int kWarpFloats = kTokenTiles * 8 * kStride;
  static constexpr int kBytes = Config::kWarps * kWarpFloats * 4;

  float* parts;

  // Puts the sums of one warp where all threads can read them. The caller synchronises before and after.
  __device__ __forceinline__ void put(const WarpSums<Config>& sums, int warp, int lane) {
    float* part = parts + warp * kWarpFloats + lane / 4;
#pragma unroll
    for (int tile = 0; tile < Config::kRowTiles; ++tile) {
#pragma unroll
      for (int t = 0; t < kTokenTiles; ++t) {
        float* at = part + (t * 8 + lane % 4 * 2) * kStride + tile * kRowTile;
        at[0] = sums[tile][t][0];
        at[kStride] = sums[tile][t][1];
        at[8] = sums[tile][t][2];
        at[kStride + 8] = sums[tile][t][3];
      }
    }
  }

  // Sum over the warps, which stand in ascending order of k.
  __device__ __forceinline__ float over_warps(int token, int row) const {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Config::kWarps; ++warp) sum += parts[warp * kWarpFloats + token * kStride + row];
    return sum;
  }

  // The same for four rows, `row` % 4 == 0.
  __device__ __forceinline__ float4 four_over_warps(int token, int row) const {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < Config::kWarps; ++warp) {
      const float4 more = *reinterpret_cast<const float4*>(parts + warp * kWarpFloats + token * kStride + row);
      sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    return sum;
  }
};

// What a block of a cluster receives: [part][token / kCluster][row] floats.
template <class Config>
struct ClusterSum {
  static constexpr int kTokens = ceil_divide(Config::kTokens, Config::kCluster);  // of a block
  static constexpr int kRows = BlockSum<Config>::kRows;
  static constexpr int kBytes = Config::kCluster == 1 ? 0 : Config::kCluster * kTokens * kRows * 4;
};

// Calls store.each<1>(sum_at, n_tokens, 0), where sum_at(token, row) is the whole sum; only the last of the tile's
// blocks does. `partials` holds [kSplitK][kTokens][kRows] floats for this tile; `split` is this block's place along k.
template <class Config, class Store>
__device__ __forceinline__ void sum_block(const WarpSums<Config>& sums, uint8_t* shared, float* partials,
                                          unsigned* ticket, int split, int n_tokens, Store store) {
  using Sum = BlockSum<Config>;
  constexpr int kOutputs = Config::kTokens * Sum::kRows;
  __shared__ unsigned is_last;
  Sum block{reinterpret_cast<float*>(shared)};
  __syncthreads();  // every warp is done with its ring, which the sums now overwrite
  block.put(sums, threadIdx.x / 32, threadIdx.x % 32);
  __syncthreads();
  if constexpr (Config::kSplitK > 1) {
    for (int o = threadIdx.x; o < kOutputs; o += Sum::kThreads) {
      partials[split * kOutputs + o] = block.over_warps(o / Sum::kRows, o % Sum::kRows);
    }
    const auto join = [] { __syncthreads(); };
    if (!is_last_arrival(ticket, Config::kSplitK, &is_last, threadIdx.x == 0, join)) return;
  }
  const auto sum_at = [&](int token, int row) {
    if constexpr (Config::kSplitK == 1) return block.over_warps(token, row);
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < Config::kSplitK; ++part) {
      sum += __ldcg(partials + part * kOutputs + token * Sum::kRows + row);
    }
    return sum;
  };
  store.template each<1>(sum_at, n_tokens, 0);
}

// The same for the blocks of a cluster, each of which stores the tokens that are its own. Nothing else
// uses the memory behind `received`. Every block has arrived at the cluster's barrier once, at its very beginning.
template <class Config, class Store>
__device__ __forceinline__ void sum_cluster(const WarpSums<Config>& sums, uint8_t* shared, float* received, int rank,
                                            int n_tokens, Store store) {
  using Sum = BlockSum<Config>;
  using Received = ClusterSum<Config>;
  constexpr int kQuads = Sum::kRows / 4;
  Sum block{reinterpret_cast<float*>(shared)};
  __syncthreads();  // every warp is done with its ring, which the sums now overwrite
  block.put(sums, threadIdx.x / 32, threadIdx.x % 32);
  __syncthreads();
  cluster_wait();  // all blocks have begun
  for (int o = threadIdx.x; o < Config::kTokens * kQuads; o += Sum::kThreads) {
    const int token = o / kQuads;
    const int row = o % kQuads * 4;
    const int place = (rank * Received::kTokens + token / Config::kCluster) * Sum::kRows + row;
    const uint32_t to = address_in_block(smem_address(received + place), token % Config::kCluster);
    store_in_cluster(to, block.four_over_warps(token, row));
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // all parts have come; from here on no block touches another's memory
  const auto sum_at = [&](int token, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < Config::kCluster; ++part) {
      sum += received[(part * Received::kTokens + token / Config::kCluster) * Sum::kRows + row];
    }
    return sum;
  };
  store.template each<Config::kCluster>(sum_at, n_tokens, rank);
}
#line 52 "templates/moe_mma/kernel.cu"

struct Config {
  using Weights = Nvfp4;                    // format of W
  static constexpr bool kIsDown = false;    // down, or gate-up
  static constexpr int kRowTiles = 4;    // 16-row tiles of a block
  static constexpr int kTokens = 8;         // slots of a block
  static constexpr int kWarps = 4;           // warps of a block: ranges of k
  static constexpr int kSlabs = 1;           // slabs in a stage, or in registers
  static constexpr int kStages = 3;         // stages in a warp's ring; 1: registers, no ring
  static constexpr int kSplitK = 1;
  static constexpr int kCluster = 1;
  static constexpr int kSignal = 0;         // when the next grid is let go
  static constexpr int kBlocksPerSm = 3;
  static constexpr int kSmemBytes = 41472;
};
static_assert(larger(Config::kWarps * WarpRing<Config>::kBytes, BlockSum<Config>::kBytes) == Config::kSmemBytes,
              "host and device disagree on shared memory");

constexpr int kRows = Config::kRowTiles * kRowTile;

// A run of slabs of one expert.
struct ExpertRows {
  static constexpr bool kMayPrefetch = Config::kIsDown;
  const uint8_t* slabs;     // slab 0 of the 64 rows
  const bf16* rows_from;    // row 0 of X or H
  const int* row_idx;       // [kTokens] rows of X or H
  int64_t ld;
  int tile;                 // first row tile in the 64 rows
  int count;
  int k_end;

  struct Tokens {
    const bf16* from;
    const int* row_idx;
    int64_t ld;
    int count;
    __device__ __forceinline__ const bf16* row(int token) const { return from + row_idx[token] * ld; }
  };

  __device__ __forceinline__ const uint8_t* slab(int i) const {
    return slabs + int64_t{i} * Slab<Config::Weights>::kBytes;
  }
  __device__ __forceinline__ Tokens tokens(int) const { return {rows_from, row_idx, ld, count}; }
  __device__ __forceinline__ int k(int i) const { return i * Config::Weights::kSlabK; }
  __device__ __forceinline__ void resolve() {}
};

// Where the results of a block go.
struct Results {
  bf16* h;                  // gate-up: H, row 0
  float* parts;             // down: parts, row 0
  const int* out_idx;       // [kTokens] rows of H or parts
  const float* factor;      // [kTokens] routing weight times alpha (down)
  int64_t ld;
  int first_row;
  int n;
  float alpha_gate;
  float alpha_up;
  float limit;

  // Stores every token; `kStep` and the first are for blocks that share a tile.
  template <int kStep, class SumAt>
  __device__ __forceinline__ void each(SumAt sum_at, int n_tokens, int) const {
    static_assert(kStep == 1, "a block of experts has its tile to itself");
    constexpr int kColumns = Config::kIsDown ? kRows : kRows / 2;
    for (int o = threadIdx.x; o < Config::kTokens * kColumns; o += Config::kWarps * 32) {
      const int token = o / kColumns;
      const int column = o % kColumns;
      if (token >= n_tokens) return;
      if constexpr (Config::kIsDown) {
        const int row = first_row + column;
        if (row >= n) continue;
        parts[out_idx[token] * ld + row] = sum_at(token, column) * factor[token];
      } else {
        // Gate and up rows alternate by eights, so a block holds both halves of each of its columns.
        const int row = column / 8 * 16 + column % 8;
        if (first_row + row >= n) continue;
        const float gate = sum_at(token, row) * alpha_gate;
        const float up = sum_at(token, row + 8) * alpha_up;
        store_value(h + out_idx[token] * ld + first_row / 2 + column, swiglu(gate, up, limit));
      }
    }
  }
};

// What a block is to do, in shared memory.
struct Work {
  int row_idx[Config::kTokens];
  int out_idx[Config::kTokens];
  float factor[Config::kTokens];
};

// Fills in `work` for a tile of the list; thread i takes slot i, and every slot so many threads on.
__device__ __forceinline__ void find_rows(Work& work, int4 tile, const int* slot_of, const float* routing,
                                          const float* alpha, int top_k) {
  for (int i = threadIdx.x; i < Config::kTokens; i += Config::kWarps * 32) {
    const int position = tile.y + i;
    const int slot = i < tile.z ? __ldcg(slot_of + position) : 0;
    // Beyond the count any row will do: its column of the product is not stored.
    work.row_idx[i] = i >= tile.z ? 0 : Config::kIsDown ? position : slot / top_k;
    work.out_idx[i] = Config::kIsDown ? slot : position;
    work.factor[i] = Config::kIsDown && i < tile.z ? __ldcg(routing + slot) * alpha[tile.x] : 1.0f;
  }
}

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32, Config::kBlocksPerSm)
    moe_mma(const uint8_t* __restrict__ weights, const bf16* from, bf16* h, float* parts, const int4* tiles,
            const int* tile_count, const int* slot_of, const float* routing, const float* alpha, int64_t ld_from,
            int64_t ld_out, int n, int k, int top_k, float limit) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ Work work;
  if constexpr (!Config::kIsDown) wait_for_dependency();
  if constexpr (Config::kSignal == 0) launch_dependents();
  // The list has room for the whole grid: both loads are on their way at once.
  const int4 tile = __ldcg(tiles + blockIdx.y);
  if (blockIdx.y >= __ldcg(tile_count)) {
    wait_for_dependency();
    return;
  }
  find_rows(work, tile, slot_of, routing, alpha, top_k);
  __syncthreads();

  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // Down's alpha is in the factors. Loaded now, so that nobody waits for it at the end.
  const float alpha_gate = Config::kIsDown ? 1.0f : alpha[2 * tile.x];
  const float alpha_up = Config::kIsDown ? 1.0f : alpha[2 * tile.x + 1];
  const int first_row = blockIdx.x * kRows;
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int64_t row_block = int64_t{tile.x} * ceil_divide(n, kRowBlock) + first_row / kRowBlock;
  ExpertRows source{weights + row_block * n_slabs * Slab<Config::Weights>::kBytes,
                    from,
                    work.row_idx,
                    ld_from,
                    first_row % kRowBlock / kRowTile,
                    tile.z,
                    k};
  WarpSums<Config> sums = {};
  const int begin = int64_t{n_slabs} * warp / Config::kWarps;
  const int end = int64_t{n_slabs} * (warp + 1) / Config::kWarps;
  stream_slabs<Config>(sums, source, begin, end, shared + warp * WarpRing<Config>::kBytes, lane);
  const Results results{h, parts, work.out_idx, work.factor, ld_out, first_row, n, alpha_gate, alpha_up, limit};
  sum_block<Config>(sums, shared, nullptr, nullptr, 0, tile.z, results);
}
