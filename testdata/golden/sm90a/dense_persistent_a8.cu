#line 4 "templates/dense_persistent_a8/kernel.cu"
// Generated from templates/dense_persistent_a8 for sm90a, dense_persistent_a8 block_k=128 consumers=2 promote=512 signal=0 stages=4 tokens=128. Do not edit.
//
// dense_persistent_a8: D[m, g * n + r] = scale[m] * alpha[segment(r)] * sum_k A[m, g * k + k'] * W[g][r, k'], FP8
// tokens. dense_wgmma_a8 for many tiles: a block an SM goes from tile to tile (lib/tile_walk.cuh).
//
//   operand  shape               in memory                              read by
//   W        [groups][n, k]      packed slabs (lib/format.cuh)          producer (bulk copy of contiguous slabs)
//   A        [m, groups * k]     E4M3, row-major, k of each 16 in the   producer (tensor map [k, m, group], 128 B
//                                order of lib/format_a8.cuh             swizzle)
//   scale    [m]                 f32                                    consumers, after the sum
//   D        [m, groups * n]     BF16 or f32, row-major                 written by the consumers
//
//   block = kConsumers warpgroups of 64 rows + a producer       ring of kStages stages (lib/warpgroup_multiply_a8.cuh)
//   ---------------------------------------------------------   -----------------------------------------------------
//   one thread   producer    wait stage_free[s]   copy tokens and weights      -> stage_full[s]
//   warpgroups   consumers   wait stage_full[s]   decode, kBlockK / 32 wgmma   -> stage_free[s]
//   behind the barriers a table of NVFP4's scales (2 KiB), which all threads make before anything has come
//
//   barrier      arrivals              announces
//   stage_full   1 + bytes             weights and tokens of the stage have landed
//   stage_free   4 * kConsumers        each consumer warp's wgmma have read the stage
//   0            all threads           (__syncthreads) the barriers above are ready, the table is made
//
// Tuned: consumers, tokens, block_k, stages, promote, signal, raster (src/kernels/dense_persistent_a8.rs).
// Limits: k in whole groups of 16, A on 16 bytes, lda % 16 == 0; what lies beyond k or m comes as zeros.
// Exactness: that of dense_wgmma_a8, whose bits these are with k in one part.
// After: PTX ISA "wgmma"; promotion and the walk over tiles follow DeepGEMM in idea.
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
#line 32 "templates/dense_persistent_a8/kernel.cu"
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
#line 33 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm90a/barrier.cuh"
// mbarriers in shared memory: arrivals and bytes are counted, phases alternate between parity 0 and 1.

// mbarrier.init: `arrivals` complete a phase.
__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// fence.mbarrier_init: makes the initialisation visible to the copy engine.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// mbarrier.arrive.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// mbarrier.arrive.expect_tx: arrives, and `bytes` more must land before the phase is complete.
__device__ __forceinline__ void barrier_arrive_and_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// cp.async.mbarrier.arrive.noinc: this thread's arrival, when all of its cp.async so far have landed.
__device__ __forceinline__ void barrier_arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// mbarrier.try_wait.parity until the phase of that parity is complete.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      "  .reg .pred done;\n"
      "again:\n"
      "  mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "  @done bra over;\n"
      "  bra again;\n"
      "over:\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// bar.sync on a named barrier: `threads` threads of the block meet.
__device__ __forceinline__ void named_barrier_sync(int barrier_idx, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier_idx), "r"(threads) : "memory");
}
#line 34 "templates/dense_persistent_a8/kernel.cu"
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
#line 35 "templates/dense_persistent_a8/kernel.cu"
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
#line 36 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm90a/bulk_copy.cuh"
// The copy engine: whole runs of bytes and boxes of tensors, counted in at an mbarrier.

// What cuTensorMapEncodeTiled fills in on the host.
struct alignas(64) TensorMap {
  uint8_t opaque[128];
};

// cp.async.bulk: `bytes` (a multiple of 16) from global to shared memory; for what is read once.
__device__ __forceinline__ void copy_bulk(uint32_t smem_to, const void* global_from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem_to),
      "l"(global_from), "r"(bytes), "r"(barrier)
      : "memory");
}

// cp.async.bulk.tensor.3d: one box at element coordinates (x, y, z); what lies outside the tensor comes as zeros.
__device__ __forceinline__ void copy_box(uint32_t smem_to, const TensorMap* map, int x, int y, int z,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(smem_to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

// prefetch.tensormap: the first box then need not wait for the descriptor.
__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// fence.proxy.async: what threads have written to shared memory is there for the copy engine and the tensor cores.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#line 37 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm80/bytes.cuh"
// Byte selection in one instruction.

// prmt: byte i of the result is byte `selector >> 4 * i & 7` of the eight in low and high; bit 3 of each nibble must be
// zero, or the byte's sign is spread instead.
__device__ __forceinline__ uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
  return out;
}
#line 38 "templates/dense_persistent_a8/kernel.cu"
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
#line 39 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 40 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm90a/fp8.cuh"
// FP8 conversion with one rounding.

// cvt.rn.satfinite.e4m3x2.f32: two floats to two E4M3 codes, `low` in the low byte; nearest, saturating at 448.
__device__ __forceinline__ uint32_t e4m3_pair_from_floats(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
#line 41 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm80/reciprocal.cuh"
// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#line 42 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm90a/store_matrix.cuh"
// stmatrix: fragments to shared memory, the way ldmatrix reads them.

// stmatrix.x4.trans: four 8x8 matrices of 16-bit values; lane i gives the address of *column* i % 8 of matrix i / 8.
__device__ __forceinline__ void store_matrix_x4_transposed(uint32_t smem_to, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_to), "r"(from[0]),
               "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// stmatrix.x2.trans: two such matrices; lanes 0 to 15 give the addresses.
__device__ __forceinline__ void store_matrix_x2_transposed(uint32_t smem_to, uint32_t from0, uint32_t from1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(smem_to), "r"(from0), "r"(from1)
               : "memory");
}
#line 43 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/arch/sm90a/wgmma.cuh"
// Warpgroup MMA: four warps multiply 64 rows held in registers with tokens held in shared memory.
// The instruction itself comes from generated/wgmma.cuh, for the one width that a kernel uses.

// wgmma.fence: registers written so far may be read by the wgmma that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// wgmma.commit_group: closes the group of all wgmma since the last one.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// wgmma.wait_group: waits until at most kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to a register that wgmma uses across this point. No instruction.
__device__ __forceinline__ void pin_register(float& value) { asm volatile("" : "+f"(value)::"memory"); }

// setmaxnreg: a warpgroup gives registers back, or takes them, down or up to kRegisters a thread.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Descriptor of a K-major operand whose rows are 128 bytes, swizzled by 128 bytes: 8 rows make 1,024 bytes.
// Layout: PTX ISA, "matrix descriptor": address / 16 in bits 0-13, stride / 16 in bits 32-45, swizzle in bits 62-63.
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t smem_address) {
  constexpr uint64_t kEightRows = 1024 / 16;
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(smem_address & 0x3FFFF) >> 4} | (uint64_t{1} << 16) | (kEightRows << 32) | (kSwizzle128 << 62);
}
#line 44 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/generated/wgmma_e4m3.cuh"
// wgmma.mma_async m64n128k32: d = a (64 x 32, E4M3, registers) * b (32 x 128, E4M3, shared memory)
// + d, or 0 without `adds`.
__device__ __forceinline__ void wgmma_generated(float (&d)[64], const uint32_t (&a)[4], uint64_t tokens,
                                                int adds) {
  asm volatile(
      "{\n"
      "  .reg .pred adds;\n"
      "  setp.ne.b32 adds, %69, 0;\n"
      "  wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, adds, 1, 1;\n"
      "}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tokens), "r"(adds));
}

#line 45 "templates/dense_persistent_a8/kernel.cu"
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
#line 46 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/format_a8.cuh"
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
#line 47 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/reciprocal.cuh"
// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
#line 48 "templates/dense_persistent_a8/kernel.cu"
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
#line 49 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 50 "templates/dense_persistent_a8/kernel.cu"
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
#line 51 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/ring.cuh"
// A ring of stages in shared memory between producers and consumers, with two mbarriers a stage.

template <int kStages>
struct Ring {
  uint32_t barriers;  // address of kStages x stage_full, then kStages x stage_free

  static constexpr int kBarrierBytes = 2 * kStages * 8;

  __device__ __forceinline__ uint32_t full(int slot) const { return barriers + slot * 8; }
  __device__ __forceinline__ uint32_t free(int slot) const { return barriers + (kStages + slot) * 8; }

  // One thread prepares the barriers; the block synchronises before anyone uses them.
  __device__ __forceinline__ void init(int full_arrivals, int free_arrivals) const {
    for (int slot = 0; slot < kStages; ++slot) {
      barrier_init(full(slot), full_arrivals);
      barrier_init(free(slot), free_arrivals);
    }
    barrier_init_done();
  }
};

// Where one side of a ring stands: the slot, and the parity of its phase.
template <int kStages>
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ int slot_before() const { return slot == 0 ? kStages - 1 : slot - 1; }

  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};
#line 52 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/warpgroup_multiply_a8.cuh"
// One warpgroup multiplies 64 rows of packed weights with kTokens FP8 tokens, block of 128 k by block, on wgmma.
//
// The rows are decoded to E4M3 in registers and are the A operand; the tokens lie in shared memory, K-major and
// swizzled by 128 bytes, and are the B operand. While the tensor cores work on one block of 128 k the warps decode the
// next into a second set of registers.
//
//   stage    tokens [kBlockK / 128][kTokens][128 B] | weights [consumer][kSlabs slabs of 64 rows]
//
//   decode   |k0|k1|  |k2|  |k3|              two register sets, even and odd blocks of 128 k
//   wgmma       |=k0=|=k1=|=k2=|=k3=|         without promotion: a group is waited for when the next has been issued
//   wgmma       |=k0=|  |=k1=|  |=k2=|        with it: the chain ends, its sums are added in f32, the next begins
//   promote           |p|     |p|             another warpgroup keeps the tensor cores busy
//
// Hopper's FP8 tensor cores keep about 13 bits behind the point of the largest term, so a long chain loses what is
// small beside its sum. A chain ends after kPromote k and is added to f32 registers; 0 never ends it.
//
// A tile may be narrower than kTokens, in steps of kStep: as in lib/warpgroup_multiply.cuh.
//
// Config gives: Weights (the format), kTokens, kBlockK, kStages, kConsumers, kPromote, kCluster.

template <class Config>
struct Stage {
  using Format = typename Config::Weights;
  static constexpr int kSlabs = Config::kBlockK / Format::kSlabK;
  static constexpr int kWeightBytes = kSlabs * Slab<Format>::kBytes;  // of one consumer
  static constexpr int kBoxBytes = Config::kTokens * 128;             // 128 k of all tokens
  static constexpr int kTokenBytes = Config::kBlockK / 128 * kBoxBytes;
  static constexpr int kWeightOffset = kTokenBytes;
  static constexpr int kBytes = round_up(kWeightOffset + Config::kConsumers * kWeightBytes, 1024);
};

// Sums of one thread, for each 8 tokens: (row g, tokens 2c, 2c + 1), (row g + 8, the same), in its warp's 16 rows.
template <class Config>
using GroupSums = float[Config::kTokens / 2];

// Registers of one block of 128 k: four steps of 32.
using Fragments = uint32_t[4][4];

// Decodes block `block` (128 k) of a stage's weights for this lane, and gives what its sums are to be multiplied by.
// `weights` is the consumer's part of the stage.
template <class Config>
__device__ __forceinline__ RowFactors decode_block(Fragments& a, const uint8_t* weights, const uint2* table, int block,
                                                   int warp, int lane) {
  using Format = typename Config::Weights;
  constexpr int kStepsOfSlab = Format::kSlabK / 32;
  RowFactors factors;
  typename Format::Scales scales;
  uint4 words;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int slab_idx = (block * 4 + step) / kStepsOfSlab;
    const int step_in_slab = step % kStepsOfSlab;
    const uint8_t* slab = weights + slab_idx * Slab<Format>::kBytes;
    if (step_in_slab == 0) {
      scales = Format::load_scales(slab + Format::kCodeBytes + warp * Slab<Format>::kTileScaleBytes, lane / 4);
    }
    if (step_in_slab % Format::kStepsOfChunk == 0) {
      const uint8_t* codes = slab + warp * Slab<Format>::kTileCodeBytes + lane * 16;
      words = *reinterpret_cast<const uint4*>(codes + step_in_slab / Format::kStepsOfChunk * 512);
    }
    Format::decode(a[step], words, scales, step_in_slab % Format::kStepsOfChunk, table);
    if constexpr (Format::kScalesSums) factors = Format::factors(scales);
  }
  return factors;
}

// Issues the four wgmma of one block of 128 k for `width` tokens, and closes their group. `box` is the address of its
// tokens; the first of a chain begins at zero.
template <class Config, int kStep, bool kBeginsChain>
__device__ __forceinline__ void multiply_block(GroupSums<Config>& sums, const Fragments& a, uint32_t box, int width) {
  wgmma_fence();
  const uint64_t tokens = swizzled_descriptor(box);
  if constexpr (kStep == Config::kTokens) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      // 32 k are 32 bytes, and the descriptor counts 16.
      wgmma_generated(sums, a[step], tokens + step * 2, step > 0 || !kBeginsChain);
    }
    wgmma_commit();
  } else {
    wgmma_of_width(sums, a, tokens, width, !kBeginsChain);
  }
}

// Adds the sums of a chain, which has ended, to the totals. A factor is a power of two, so each addition rounds once.
template <class Config>
__device__ __forceinline__ void promote(GroupSums<Config>& totals, GroupSums<Config>& sums, const RowFactors& factors) {
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) {
    if constexpr (Config::Weights::kScalesSums) {
      totals[i] = __fmaf_rn(sums[i], i % 4 < 2 ? factors.upper : factors.lower, totals[i]);
    } else {
      totals[i] += sums[i];
    }
  }
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
}

// One lane of each warp reports a slot free, to every block that writes into it: all of the cluster.
template <class Config>
__device__ __forceinline__ void release(Ring<Config::kStages> ring, int slot, int lane) {
  if constexpr (Config::kCluster == 1) {
    if (lane == 0) barrier_arrive(ring.free(slot));
  } else {
    if (lane < Config::kCluster) barrier_arrive_in_cluster(address_in_block(ring.free(slot), lane));
  }
}

// Where a warpgroup stands in a run of stages. `width` is a multiple of kStep, the same for all threads of the
// warpgroup. kTokensByThreads: the tokens were written by threads (cp.async), which the tensor cores must be told of.
template <class Config, bool kTokensByThreads, int kStep>
struct Place {
  RingPosition<Config::kStages> position;
  int width;
  int previous_slot = -1;  // of the stage whose wgmma may still be under way
  RowFactors factors;      // of the chain that is under way, if it is of 128 k
};

// Decodes block `kBlock` of the stage at `place` and multiplies it. kEndsChain: after the chain before has ended and
// was added to the totals. The wgmma of the block are still under way when this returns, those before it are not.
template <class Config, int kBlock, bool kEndsChain, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_next(GroupSums<Config>& totals, GroupSums<Config>& sums, Fragments& a,
                                              Place<Config, kTokensByThreads, kStep>& place, const uint8_t* stages,
                                              const uint2* table, Ring<Config::kStages> ring, int consumer, int lane) {
  using Stage = Stage<Config>;
  if constexpr (kBlock == 0) {
    barrier_wait(ring.full(place.position.slot), place.position.parity);
    if constexpr (kTokensByThreads) fence_async_proxy();
  }
  const uint8_t* stage = stages + place.position.slot * Stage::kBytes;
  const uint8_t* weights = stage + Stage::kWeightOffset + consumer * Stage::kWeightBytes;
  const uint32_t box = smem_address(stage) + kBlock * Stage::kBoxBytes;
  const int warp = threadIdx.x / 32 % 4;
  const RowFactors next = decode_block<Config>(a, weights, table, kBlock, warp, lane);
  const bool follows_stage = kBlock == 0 && place.previous_slot >= 0;
  if constexpr (kEndsChain) {
    wgmma_wait<0>();
    if (follows_stage) release<Config>(ring, place.previous_slot, lane);
    promote<Config>(totals, sums, place.factors);  // before the first chain the sums are zeros
    multiply_block<Config, kStep, true>(sums, a, box, place.width);
  } else {
    multiply_block<Config, kStep, false>(sums, a, box, place.width);
    wgmma_wait<1>();
    if (follows_stage) release<Config>(ring, place.previous_slot, lane);
  }
  place.factors = next;
  if constexpr (kBlock == Config::kBlockK / 128 - 1) {
    place.previous_slot = place.position.slot;
    place.position.advance();
  }
}

// Multiplies `n_stages` stages of the ring from `place` on, and leaves it behind them; the last of them is not reported
// free. With promotion `totals` gets the result, without it `sums`; both are zero.
//
// The loop has no exit in its middle: behind one, ptxas loses sight of which registers a wgmma still reads, and lets
// every wgmma wait for the one before (C7513). Blocks that do not fill it follow behind, each in a chain of its own.
template <class Config, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_from(Place<Config, kTokensByThreads, kStep>& place, GroupSums<Config>& totals,
                                              GroupSums<Config>& sums, const uint8_t* stages, const uint2* table,
                                              Ring<Config::kStages> ring, int n_stages, int consumer, int lane) {
  constexpr int kBlocks = Config::kBlockK / 128;  // of a stage
  constexpr int kChain = Config::kPromote / 128;  // blocks of a chain; 0: it never ends
  constexpr int kUnrolled = larger(2, kChain);    // the register sets take turns, and chains begin at known places
  static_assert(kBlocks <= 2 && (kChain <= 2 || kChain == 4), "chains and stages fill the loop");
  static_assert(!Config::Weights::kScalesSums || kChain == 1, "a scale of 128 k belongs to one chain");
  Fragments a[2];
  const int n_blocks = n_stages * kBlocks;
#pragma unroll
  for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
  int idx = 0;
#pragma unroll 1
  for (; idx + kUnrolled <= n_blocks; idx += kUnrolled) {
    multiply_next<Config, 0, (kChain > 0)>(totals, sums, a[0], place, stages, table, ring, consumer, lane);
    multiply_next<Config, 1 % kBlocks, kChain == 1>(totals, sums, a[1], place, stages, table, ring, consumer, lane);
    if constexpr (kUnrolled == 4) {
      multiply_next<Config, 0, false>(totals, sums, a[0], place, stages, table, ring, consumer, lane);
      multiply_next<Config, 1 % kBlocks, false>(totals, sums, a[1], place, stages, table, ring, consumer, lane);
    }
  }
  wgmma_wait<0>();
#pragma unroll 1
  for (; idx < n_blocks; idx += kBlocks) {
    multiply_next<Config, 0, (kChain > 0)>(totals, sums, a[0], place, stages, table, ring, consumer, lane);
    wgmma_wait<0>();
    if constexpr (kBlocks == 2) {
      multiply_next<Config, 1, (kChain > 0)>(totals, sums, a[1], place, stages, table, ring, consumer, lane);
      wgmma_wait<0>();
    }
  }
  if constexpr (kChain > 0) {
    promote<Config>(totals, sums, place.factors);
  } else {
#pragma unroll
    for (int i = 0; i < Config::kTokens / 2; ++i) pin_register(sums[i]);
  }
}

// A block with one tile, of full width.
template <class Config>
__device__ __forceinline__ void multiply_stages(GroupSums<Config>& totals, GroupSums<Config>& sums,
                                                const uint8_t* stages, const uint2* table, Ring<Config::kStages> ring,
                                                int n_stages, int consumer, int lane) {
  Place<Config, false, Config::kTokens> place{{}, Config::kTokens};
  multiply_from<Config>(place, totals, sums, stages, table, ring, n_stages, consumer, lane);
}

// A tile of `width` tokens, from `position` on, which is left behind it: the producer goes on with the next tile and
// waits for every stage.
template <class Config, bool kTokensByThreads, int kStep>
__device__ __forceinline__ void multiply_run(GroupSums<Config>& totals, GroupSums<Config>& sums, const uint8_t* stages,
                                             const uint2* table, Ring<Config::kStages> ring,
                                             RingPosition<Config::kStages>& position, int n_stages, int width,
                                             int consumer, int lane) {
  Place<Config, kTokensByThreads, kStep> place{position, width};
  multiply_from<Config>(place, totals, sums, stages, table, ring, n_stages, consumer, lane);
  position = place.position;
  release<Config>(ring, position.slot_before(), lane);
}
#line 53 "templates/dense_persistent_a8/kernel.cu"
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
#line 54 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/warpgroup_store.cuh"
// From the registers of a warpgroup to memory: sums over parts of k, alpha, SwiGLU, one rounding, only inside N and M.
//
// A fragment pairs tokens, memory wants rows together: BF16 results are transposed 8 x 8 by stmatrix into shared memory
// (the ring, when it is free by then, or a little room of their own) and leave it as 16-byte pieces of a token's row.
// f32 results go straight out, eight lanes writing the 32 bytes of a sector, or with a little room for each warp as
// 16-byte pieces too.
//
// Config gives: kTokens, kConsumers, kSwiGlu; kSplitK or kCluster where blocks share a tile.

// Adds the parts of the kSplitK blocks that share a tile, one's own included, in ascending order of k. Returns whether
// this block is the one that stores. `partials` holds [kSplitK][kTokens / 8][thread] float4 for this tile.
template <class Config, class Join>
__device__ __forceinline__ bool sum_splits(GroupSums<Config>& sums, float4* partials, unsigned* ticket, unsigned* flag,
                                           int split, int thread, Join join) {
  constexpr int kThreads = Config::kConsumers * 128;
  constexpr int kPieces = Config::kTokens / 8;
  float4* own = partials + split * kPieces * kThreads + thread;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    own[i * kThreads] = make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
  }
  if (!is_last_arrival(ticket, Config::kSplitK, flag, thread == 0, join)) return false;
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) sums[i] = 0.0f;
  const float4* from = partials + thread;
#pragma unroll 1
  for (int part = 0; part < Config::kSplitK; ++part, from += kPieces * kThreads) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float4 more = __ldcg(from + i * kThreads);
      sums[4 * i] += more.x;
      sums[4 * i + 1] += more.y;
      sums[4 * i + 2] += more.z;
      sums[4 * i + 3] += more.w;
    }
  }
  return true;
}

// A block's own tokens, where the blocks of a cluster share a tile: each stores a run of them, for all rows.
template <class Config>
struct OwnTokens : Config {
  static constexpr int kTokens = Config::kTokens / Config::kCluster;
  static_assert(Config::kTokens % (16 * Config::kCluster) == 0, "results leave by sixteen tokens");
  static constexpr int kReceivedBytes = Config::kTokens / 8 * Config::kConsumers * 128 * 16;
};

// Adds the parts of the kCluster blocks that share a tile, in ascending order of k, for this block's own tokens. They
// pass through `received`, which every thread of the block has read for the last time: the ring.
template <class Config>
__device__ __forceinline__ void sum_in_cluster(GroupSums<OwnTokens<Config>>& own, const GroupSums<Config>& sums,
                                               uint8_t* received, int rank, int thread) {
  constexpr int kThreads = Config::kConsumers * 128;
  constexpr int kPieces = OwnTokens<Config>::kTokens / 8;
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // nobody needs its ring any more
  const uint32_t mine = smem_address(received) + (rank * kPieces * kThreads + thread) * 16;
#pragma unroll
  for (int block = 0; block < Config::kCluster; ++block) {
    const uint32_t to = address_in_block(mine, block);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float* piece = sums + 4 * (block * kPieces + i);
      store_in_cluster(to + i * kThreads * 16, make_float4(piece[0], piece[1], piece[2], piece[3]));
    }
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();  // all parts have come; from here on no block touches another's memory
#pragma unroll
  for (int i = 0; i < 4 * kPieces; ++i) own[i] = 0.0f;
  const float4* from = reinterpret_cast<const float4*>(received) + thread;
#pragma unroll 1
  for (int part = 0; part < Config::kCluster; ++part, from += kPieces * kThreads) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const float4 more = from[i * kThreads];
      own[4 * i] += more.x;
      own[4 * i + 1] += more.y;
      own[4 * i + 2] += more.z;
      own[4 * i + 3] += more.w;
    }
  }
}

// Where a tile goes. `Rows` gives row(token), the address of column 0 for that token; factor(token), what its values
// are multiplied by last; and count, the tokens there are.
template <class Config, class Rows>
struct TileStore {
  static constexpr int kColumns = Config::kSwiGlu ? kRowBlock / 2 : kRowBlock;  // of one consumer
  static constexpr int kStride = kColumns * 2 + 16;  // bytes; 16 more: eight rows of stmatrix meet no bank twice

  Rows rows;
  int first_row;  // of the weight: the consumer's row 0
  int n;
  float alpha_upper;  // of this thread's rows g and g + 8 of its warp's tile
  float alpha_lower;
  float limit;

  __device__ __forceinline__ int first_column() const { return Config::kSwiGlu ? first_row / 2 : first_row; }
  __device__ __forceinline__ int columns() const { return Config::kSwiGlu ? n / 2 : n; }

  // f32: two tokens of two rows for each fragment.
  __device__ __forceinline__ void floats(const GroupSums<Config>& sums, int warp, int lane) const {
    const int row = first_row + warp * kRowTile + lane / 4;
#pragma unroll
    for (int i = 0; i < Config::kTokens / 8; ++i) {
      if (i * 8 >= rows.count) break;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = i * 8 + lane % 4 * 2 + j;
        if (token >= rows.count) continue;
        float* to = rows.row(token);
        const float factor = rows.factor(token);
        if constexpr (Config::kSwiGlu) {
          const float value = swiglu(sums[4 * i + j] * alpha_upper, sums[4 * i + 2 + j] * alpha_lower, limit);
          if (row < n) to[row / 16 * 8 + row % 8] = value * factor;
        } else {
          if (row < n) to[row] = sums[4 * i + j] * alpha_upper * factor;
          if (row + 8 < n) to[row + 8] = sums[4 * i + 2 + j] * alpha_lower * factor;
        }
      }
    }
  }

  // f32 without SwiGLU, by eights of tokens through `staging`, kWarpFloats of the warp's own: a lane takes four rows of
  // one token.
  // `rows` gives row_of_eight(i, lane) and factor_of_eight(i, lane), those of token 8 i + lane / 4, to all lanes.
  static constexpr int kFloatStride = kRowTile + 4;  // 4 more: four pairs of tokens and eight rows meet no bank twice
  static constexpr int kWarpFloats = 8 * kFloatStride;
  __device__ __forceinline__ void floats_in_eights(const GroupSums<Config>& sums, float* staging, int warp,
                                                   int lane) const {
    float* put = staging + lane % 4 * 2 * kFloatStride + lane / 4;
    const float4* get = reinterpret_cast<const float4*>(staging + lane / 4 * kFloatStride + lane % 4 * 4);
    const int row = first_row + warp * kRowTile + lane % 4 * 4;
    // An eight is stored when the next one is on its way, so that nobody waits for shared memory.
    float4 last = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i <= Config::kTokens / 8; ++i) {
      const float4 values = last;
      if (i < Config::kTokens / 8 && i * 8 < rows.count) {
        __syncwarp();  // the eight before this one has been read
        put[0] = sums[4 * i] * alpha_upper;
        put[kFloatStride] = sums[4 * i + 1] * alpha_upper;
        put[8] = sums[4 * i + 2] * alpha_lower;
        put[kFloatStride + 8] = sums[4 * i + 3] * alpha_lower;
        __syncwarp();
        last = *get;
      }
      if (i > 0) {
        float* to = rows.row_of_eight(i - 1, lane);
        const float factor = rows.factor_of_eight(i - 1, lane);
        if ((i - 1) * 8 + lane / 4 < rows.count) {
          const float4 scaled = make_float4(values.x * factor, values.y * factor, values.z * factor, values.w * factor);
          store_four(to, row, n, scaled);
        }
        if (i * 8 >= rows.count) break;
      }
    }
  }

  // Four f32 of a row, as far as there are columns; in one piece where the address allows it.
  static __device__ __forceinline__ void store_four(float* row, int column, int n_columns, const float4& values) {
    float* to = row + column;
    if (column + 4 <= n_columns && (reinterpret_cast<uint64_t>(to) & 15) == 0) {
      *reinterpret_cast<float4*>(to) = values;
      return;
    }
    const float single[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < n_columns) to[i] = single[i];
    }
  }

  // BF16: through `staging`, room for all tokens of this consumer. `join` joins its 128 threads.
  template <class Join>
  __device__ __forceinline__ void pairs(const GroupSums<Config>& sums, uint8_t* staging, int warp, int lane,
                                        Join join) const {
#pragma unroll
    for (int i = 0; i < Config::kTokens / 8; i += 2) stage_sixteen(sums + 4 * i, staging, i * 8, warp, lane);
    join();
    copy_out(staging, 0, Config::kTokens, warp, lane);
  }

  // The same with room for kChunk tokens only, which nobody else uses; two barriers for each chunk.
  static constexpr int kChunk = 32;
  static constexpr int kChunkBytes = kChunk * kStride;
  template <class Join>
  __device__ __forceinline__ void pairs_in_chunks(const GroupSums<Config>& sums, uint8_t* staging, int warp, int lane,
                                                  Join join) const {
#pragma unroll
    for (int first = 0; first < Config::kTokens; first += kChunk) {
      if (first >= rows.count) break;
      join();  // the chunk before this one has been read
#pragma unroll
      for (int token = 0; token < kChunk; token += 16) {
        if (first + token < Config::kTokens) stage_sixteen(sums + (first + token) / 2, staging, token, warp, lane);
      }
      join();
      copy_out(staging, first, smaller(kChunk, Config::kTokens - first), warp, lane);
    }
  }

  // Two fragments, 16 tokens, to rows `token` and on of `staging`. `sums` are the eight of this thread.
  __device__ __forceinline__ void stage_sixteen(const float* sums, uint8_t* staging, int token, int warp,
                                                int lane) const {
    const uint32_t to = smem_address(staging) + (token + lane % 8) * kStride + warp * (kStride - 16) / 4;
    uint32_t pairs[4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* sum = sums + 4 * h;
      if constexpr (Config::kSwiGlu) {
        pairs[h] = pair_from_floats(swiglu(sum[0] * alpha_upper, sum[2] * alpha_lower, limit),
                                    swiglu(sum[1] * alpha_upper, sum[3] * alpha_lower, limit));
      } else {
        pairs[2 * h] = pair_from_floats(sum[0] * alpha_upper, sum[1] * alpha_upper);
        pairs[2 * h + 1] = pair_from_floats(sum[2] * alpha_lower, sum[3] * alpha_lower);
      }
    }
    if constexpr (Config::kSwiGlu) {
      store_matrix_x2_transposed(to + lane / 8 % 2 * 8 * kStride, pairs[0], pairs[1]);
    } else {
      store_matrix_x4_transposed(to + lane / 16 * 8 * kStride + lane / 8 % 2 * 16, pairs);
    }
  }

  // `tokens` staged tokens, of which the first is token `first` of the tile.
  __device__ __forceinline__ void copy_out(const uint8_t* staging, int first, int tokens, int warp, int lane) const {
    constexpr int kPieces = kColumns / 8;
    const int n_columns = columns();
#pragma unroll 1
    for (int piece = warp * 32 + lane; piece < tokens * kPieces; piece += 128) {
      const int token = piece / kPieces;
      if (first + token >= rows.count) break;
      const int column = first_column() + piece % kPieces * 8;
      const uint4 values = *reinterpret_cast<const uint4*>(staging + token * kStride + piece % kPieces * 16);
      store_eight(rows.row(first + token), column, n_columns, values);
    }
  }

  // Eight BF16 of a row, as far as there are columns; in one piece where the address allows it.
  static __device__ __forceinline__ void store_eight(bf16* row, int column, int n_columns, const uint4& values) {
    bf16* to = row + column;
    if (column + 8 <= n_columns && (reinterpret_cast<uint64_t>(to) & 15) == 0) {
      *reinterpret_cast<uint4*>(to) = values;
      return;
    }
    const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (column + i < n_columns) to[i] = static_cast<bf16>(words[i / 2] >> (i % 2 * 16));
    }
  }
};
#line 55 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/weight_stage.cuh"
// Packed weights into a stage of the ring: runs of slabs, one for each consumer's block of 64 rows, by bulk copies.
//
// A slab beyond k is replaced by the last one: its tokens are zeros, and zero times a finite number is zero, where what
// lies in shared memory by chance might not be finite. So is a block of rows beyond n, whose results nobody stores.
//
// Config gives: Weights (the format), kConsumers, and what Stage<Config> needs, which stands in the header that
// multiplies (lib/warpgroup_multiply.cuh or lib/warpgroup_multiply_a8.cuh).

// One of several matrices [n, k] that lie one behind the other: of a group of heads, or of an expert.
struct PackedMatrix {
  const uint8_t* weights;  // of all of them
  int idx;
  int row_blocks;          // blocks of 64 rows
  int n_slabs;             // along k

  // Slabs `first_slab` and on of the rows from `first_row` on. The bytes are counted in at `barrier`.
  template <class Config>
  __device__ __forceinline__ void copy_stage(int first_row, int first_slab, uint32_t stage, uint32_t barrier) const {
    constexpr int kSlabs = Stage<Config>::kSlabs;
    constexpr int kSlabBytes = Slab<typename Config::Weights>::kBytes;
#pragma unroll
    for (int consumer = 0; consumer < Config::kConsumers; ++consumer) {
      const int row_block = smaller(first_row / kRowBlock + consumer, row_blocks - 1);
      const uint8_t* block = weights + (int64_t{idx} * row_blocks + row_block) * n_slabs * kSlabBytes;
      const uint32_t to = stage + Stage<Config>::kWeightOffset + consumer * Stage<Config>::kWeightBytes;
      if (first_slab + kSlabs <= n_slabs) {
        copy_bulk(to, block + int64_t{first_slab} * kSlabBytes, kSlabs * kSlabBytes, barrier);
      } else {
        for (int s = 0; s < kSlabs; ++s) {
          const int slab = smaller(first_slab + s, n_slabs - 1);
          copy_bulk(to + s * kSlabBytes, block + int64_t{slab} * kSlabBytes, kSlabBytes, barrier);
        }
      }
    }
  }
};
#line 56 "templates/dense_persistent_a8/kernel.cu"
#line 1 "templates/lib/tile_walk.cuh"
// A block an SM goes over the tiles of D, and its ring does not run empty between: what the families of
// dense_persistent share.
//
//   producer  |tile 0 ...      |tile 1 ...      |tile 2     a tile's first stages are there when the results of the
//   consumers    |tile 0 ...   |out|tile 1 ...   |out|      last one are out, and D drains under its products
//
// A grid is built for the tokens of a bucket, and a launch may have fewer: tiles of which no token is there are neither
// copied nor multiplied, but for a block's first, whose weights are on their way before the count is known.
//
// BF16 results leave by sixteen tokens through a little room behind the ring, of which each warp has columns of its
// own, so that warps wait for nobody.
//
// Config gives: Weights, Out, kSwiGlu, kConsumers, kTokens, kBlockK, kStages, kSignal. Stage<Config> and the products
// stand in the header that multiplies (lib/warpgroup_multiply.cuh or lib/warpgroup_multiply_a8.cuh).

constexpr int kStagingTokens = 16;

// Bytes of a consumer's room for results on their way out.
template <class Config>
constexpr int staging_bytes() {
  return kStagingTokens * ((Config::kSwiGlu ? kRowBlock / 2 : kRowBlock) * 2 + 16);
}

// One tile of D.
struct Work {
  int group;
  int first_row;    // in the group
  int first_token;
};

// All tiles; a block takes every gridDim.x-th.
template <class Config>
struct TileList {
  int row_tiles;      // of a group
  int all_row_tiles;
  int token_tiles;
  int is_by_token;    // the tokens of a row tile one after the other; else the rows of a token tile

  __device__ __forceinline__ int end() const { return all_row_tiles * token_tiles; }

  __device__ __forceinline__ Work at(int item) const {
    const int row = is_by_token ? item / token_tiles : item % all_row_tiles;
    const int token = is_by_token ? item % token_tiles : item / all_row_tiles;
    return {row / row_tiles, row % row_tiles * Config::kConsumers * kRowBlock, token * Config::kTokens};
  }

  // The block's next tile behind `item` that has one of the tokens that there are.
  __device__ __forceinline__ int after(int item, int tokens) const {
    do {
      item += gridDim.x;
    } while (item < end() && at(item).first_token >= tokens);
    return item;
  }
};

template <class Config>
__device__ __forceinline__ TileList<Config> list_of_tiles(int m, int row_blocks, int groups, int is_by_token) {
  const int row_tiles = ceil_divide(row_blocks, Config::kConsumers);
  return {row_tiles, groups * row_tiles, ceil_divide(m, Config::kTokens), is_by_token};
}

// What the producer copies from.
template <class Config>
struct Source {
  const uint8_t* weights;
  const TensorMap* a;
  int row_blocks;   // blocks of 64 rows in a group
  int n_slabs;

  __device__ __forceinline__ void copy_weights(const Work& work, int stage_idx, uint32_t stage, uint32_t full) const {
    const PackedMatrix matrix{weights, work.group, row_blocks, n_slabs};
    matrix.copy_stage<Config>(work.first_row, stage_idx * Stage<Config>::kSlabs, stage, full);
  }

  __device__ __forceinline__ void copy_tokens(const Work& work, int stage_idx, uint32_t stage, uint32_t full) const {
    constexpr int kBoxes = Stage<Config>::kTokenBytes / Stage<Config>::kBoxBytes;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const int k = stage_idx * Config::kBlockK + box * (Config::kBlockK / kBoxes);
      copy_box(stage + box * Stage<Config>::kBoxBytes, a, k, work.first_token, work.group, full);
    }
  }
};

// One thread feeds the ring. The weights of the first tile's first stages come before the grid ahead has ended.
template <class Config>
__device__ __forceinline__ void produce(const TileList<Config>& list, const Source<Config>& from,
                                        const int* m_on_device, int m, int n_stages, uint32_t stages,
                                        Ring<Config::kStages> ring) {
  constexpr int kStageBytes = Config::kConsumers * Stage<Config>::kWeightBytes + Stage<Config>::kTokenBytes;
  prefetch_map(from.a);
  const int early = smaller(n_stages, Config::kStages);
  Work work = list.at(blockIdx.x);
  for (int i = 0; i < early; ++i) {
    barrier_arrive_and_expect(ring.full(i), kStageBytes);
    from.copy_weights(work, i, stages + i * Stage<Config>::kBytes, ring.full(i));
  }
  wait_for_dependency();
  RingPosition<Config::kStages> position;
  for (int i = 0; i < early; ++i) {
    from.copy_tokens(work, i, stages + i * Stage<Config>::kBytes, ring.full(i));
    position.advance();
  }
  const int tokens = actual_tokens(m_on_device, m);
  int i = early;
  for (int item = blockIdx.x; item < list.end(); item = list.after(item, tokens)) {
    work = list.at(item);
    for (; i < n_stages; ++i) {
      // A slot is free from the start: the phase before the first one is over.
      barrier_wait(ring.free(position.slot), position.parity ^ 1);
      const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
      barrier_arrive_and_expect(ring.full(position.slot), kStageBytes);
      from.copy_weights(work, i, stage, ring.full(position.slot));
      from.copy_tokens(work, i, stage, ring.full(position.slot));
      position.advance();
    }
    i = 0;
  }
  if constexpr (Config::kSignal != 0) launch_dependents();
}

// Rows of D for the tokens of a tile.
template <class Out>
struct TokenRows {
  Out* d;
  int64_t ldd;
  int count;
  __device__ __forceinline__ Out* row(int token) const { return d + token * ldd; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};

// A warp's rows of sixteen tokens after sixteen. They are stored when the next ones are on their way, so that nobody
// waits for shared memory.
template <class Config, class Store>
__device__ __forceinline__ void store_pairs(const Store& store, const GroupSums<Config>& sums, uint8_t* staging,
                                            int warp, int lane) {
  constexpr int kPieces = Config::kSwiGlu ? 1 : 2;  // of 16 bytes, of a warp's rows of a token
  const bool is_storing = lane < kStagingTokens * kPieces;
  const int own_token = lane / kPieces % kStagingTokens;
  const int piece = warp * kPieces + lane % kPieces;
  const uint4* get = reinterpret_cast<const uint4*>(staging + own_token * Store::kStride + piece * 16);
  const int column = store.first_column() + piece * 8;
  const int n_columns = store.columns();
  uint4 last = make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int first = 0; first <= Config::kTokens; first += kStagingTokens) {
    const uint4 values = last;
    if (first < Config::kTokens) {
      __syncwarp();  // the sixteen before these have been read
      store.stage_sixteen(sums + first / 2, staging, 0, warp, lane);
      __syncwarp();
      last = *get;
    }
    const int token = first - kStagingTokens + own_token;
    if (first > 0 && is_storing && token < store.rows.count) {
      Store::store_eight(store.rows.row(token), column, n_columns, values);
    }
  }
}

// A tile of one consumer, in BF16 or f32.
template <class Config, class Store>
__device__ __forceinline__ void store_tile(const Store& store, const GroupSums<Config>& sums, uint8_t* staging,
                                           int warp, int lane) {
  if constexpr (sizeof(typename Config::Out) == 4) {
    store.floats(sums, warp, lane);
  } else {
    store_pairs<Config>(store, sums, staging, warp, lane);
  }
}

// The consumer's rows of a tile, and what multiplies them.
template <class Config>
__device__ __forceinline__ TileStore<Config, TokenRows<typename Config::Out>> store_of_tile(
    typename Config::Out* d, int64_t ldd, const Work& work, const Segments& segments, int tokens, int n, int consumer,
    int warp, int lane, float limit) {
  const int columns = Config::kSwiGlu ? n / 2 : n;
  const int first_row = work.first_row + consumer * kRowBlock;
  const int row = first_row + warp * kRowTile + lane / 4;
  const float alpha_upper = Config::kSwiGlu ? segments.alpha[0] : alpha_of_row(segments, row);
  const float alpha_lower = Config::kSwiGlu ? segments.alpha[1] : alpha_of_row(segments, row + 8);
  const TokenRows<typename Config::Out> rows{d + work.first_token * ldd + int64_t{work.group} * columns, ldd,
                                             tokens - work.first_token};
  return {rows, first_row, n, alpha_upper, alpha_lower, limit};
}
#line 57 "templates/dense_persistent_a8/kernel.cu"

struct Config {
  using Weights = Nvfp4A8;                  // format of W
  using Out = bf16;                            // element of D
  static constexpr bool kSwiGlu = false;     // rows alternate: 8 gate, 8 up
  static constexpr int kConsumers = 2;   // warpgroups, 64 rows each
  static constexpr int kTokens = 128;         // tokens of a tile
  static constexpr int kBlockK = 128;        // k of a stage
  static constexpr int kStages = 4;         // stages in the ring
  static constexpr int kPromote = 512;       // k of a chain of tensor-core sums; 0: all
  static constexpr int kSplitK = 1;
  static constexpr int kCluster = 1;
  static constexpr int kSignal = 0;         // when the next grid is let go: 0 at once, else at the end
  static constexpr int kThreads = 384;     // consumers, then a warpgroup of producers
  static constexpr int kSmemBytes = 113232;
};

constexpr int kConsumerThreads = Config::kConsumers * 128;
static_assert(Config::kConsumers == 2 && Config::kThreads == kConsumerThreads + 128,
              "three warpgroups of 168 registers fill an SM");
constexpr int kRingBytes = Config::kStages * Stage<Config>::kBytes;
// Behind the ring: each consumer's room for results on their way out and for each warp's scales, then the barriers and
// the table.
constexpr int kScaleBytes = Config::kTokens * 4;
constexpr int kStagingBytes = staging_bytes<Config>() + 4 * kScaleBytes;
constexpr int kBarrierOffset = kRingBytes + Config::kConsumers * kStagingBytes;
constexpr int kTableOffset = kBarrierOffset + Ring<Config::kStages>::kBarrierBytes + 16;
constexpr int kTableBytes = Config::Weights::kHasTable ? 256 * 8 : 0;
static_assert(kTableOffset + kTableBytes == Config::kSmemBytes, "host and device disagree on shared memory");
static_assert(Config::kTokens % kStagingTokens == 0, "results leave by sixteen tokens");

// Scales of a tile's tokens on their way to `scales`, which is a warp's own; zeros for tokens that are not there.
__device__ __forceinline__ void copy_scales(float* scales, const float* row_scales, int count, int lane) {
  __syncwarp();  // those of the tile before have been read
#pragma unroll
  for (int first = 0; first < Config::kTokens; first += 128) {
    const int token = first + lane * 4;
    const int bytes = larger(0, smaller(4, count - token)) * 4;
    if (token < Config::kTokens) {
      copy_async_16_or_zeros(smem_address(scales + token), bytes > 0 ? row_scales + token : row_scales, bytes);
    }
  }
  commit_copies();
}

// Multiplies each token's sums by its scale.
__device__ __forceinline__ void scale_tokens(GroupSums<Config>& sums, const float* scales, int lane) {
  wait_copies<0>();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Config::kTokens / 8; ++i) {
    const float2 scale = *reinterpret_cast<const float2*>(scales + i * 8 + lane % 4 * 2);
    sums[4 * i] *= scale.x;
    sums[4 * i + 1] *= scale.y;
    sums[4 * i + 2] *= scale.x;
    sums[4 * i + 3] *= scale.y;
  }
}

// The sums of a tile, begun at zero.
__device__ __forceinline__ void multiply(GroupSums<Config>& totals, const uint8_t* stages, const uint2* table,
                                         Ring<Config::kStages> ring, RingPosition<Config::kStages>& position,
                                         int n_stages, int consumer, int lane) {
  constexpr int kTokens = Config::kTokens;
  if constexpr (Config::kPromote > 0) {
    GroupSums<Config> sums = {};
    multiply_run<Config, false, kTokens>(totals, sums, stages, table, ring, position, n_stages, kTokens, consumer,
                                         lane);
  } else {
    multiply_run<Config, false, kTokens>(totals, totals, stages, table, ring, position, n_stages, kTokens, consumer,
                                         lane);
  }
}

extern "C" __global__ void __launch_bounds__(Config::kThreads, 1)
    dense_persistent_a8(const uint8_t* __restrict__ weights, const __grid_constant__ TensorMap a,
                        const float* row_scales, Config::Out* d, const int* m_on_device, int64_t ldd, int m, int n,
                        int k, int groups, int is_raster_by_token, float limit,
                        const __grid_constant__ Segments segments) {
  extern __shared__ __align__(1024) uint8_t shared[];
  if constexpr (Config::kSignal == 0) launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Ring<Config::kStages> ring{smem_address(shared) + kBarrierOffset};
  uint2* table = reinterpret_cast<uint2*>(shared + kTableOffset);
  if (threadIdx.x == 0) ring.init(1, 4 * Config::kConsumers);
  if constexpr (Config::Weights::kHasTable) {
    for (int byte = threadIdx.x; byte < 256; byte += Config::kThreads) table[byte] = table_of_e5m3(byte);
  }
  __syncthreads();
  const int row_blocks = ceil_divide(n, kRowBlock);
  const int n_slabs = ceil_divide(k, Config::Weights::kSlabK);
  const int n_stages = ceil_divide(n_slabs, Stage<Config>::kSlabs);
  const TileList<Config> list = list_of_tiles<Config>(m, row_blocks, groups, is_raster_by_token);
  // A launch may be of fewer tokens than its grid was built for.
  if (int(blockIdx.x) >= list.end()) {
    wait_for_dependency();
    return;
  }

  if (warp >= 4 * Config::kConsumers) {
    give_registers<56>();
    if (warp == 4 * Config::kConsumers && lane == 0) {
      const Source<Config> from{weights, &a, row_blocks, n_slabs};
      produce<Config>(list, from, m_on_device, m, n_stages, smem_address(shared), ring);
    }
    wait_for_dependency();
    return;
  }

  take_registers<224>();
  const int consumer = warp / 4;
  uint8_t* staging = shared + kRingBytes + consumer * kStagingBytes;
  float* scales = reinterpret_cast<float*>(staging + staging_bytes<Config>() + warp % 4 * kScaleBytes);
  RingPosition<Config::kStages> position;
  wait_for_dependency();
  const int tokens = actual_tokens(m_on_device, m);
  for (int item = blockIdx.x; item < list.end(); item = list.after(item, tokens)) {
    const Work work = list.at(item);
    copy_scales(scales, row_scales + work.first_token, tokens - work.first_token, lane);
    GroupSums<Config> sums = {};
    multiply(sums, shared, table, ring, position, n_stages, consumer, lane);
    const auto store = store_of_tile<Config>(d, ldd, work, segments, tokens, n, consumer, warp % 4, lane, limit);
    scale_tokens(sums, scales, lane);
    store_tile<Config>(store, sums, staging, warp % 4, lane);
  }
}
