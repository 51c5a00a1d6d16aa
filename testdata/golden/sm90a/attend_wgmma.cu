#line 4 "templates/attend_wgmma/kernel.cu"
// Generated from templates/attend_wgmma for sm90a. Do not edit.
//
// attend_wgmma: O[t, h, :] = rotated back(sum_j p_j * K_j) as in templates/attend, for one split: both products on
// wgmma, which needs half of the shared-memory reads. 64 heads, 64 keys, 512 columns.
//
//   operand     shape                        in memory                         written / read
//   q           [m, heads, head_dim]         BF16                              read once
//   kv_step     [m, head_dim]                BF16, keys of this step           gathered by rows
//   kv_ring     [slots, window, head_dim]    BF16, position p in p % window    gathered by rows
//   pool        [pages, 64, head_dim]        BF16, compressed entries          gathered by rows
//   table       [slots, max_pages]           int32, pages of entry w / 64      read for each key
//   picks       [m, top_k]                   int32, entries of a list          read for each key
//   sinks       [heads]                      f32                               read at the end
//   rope        [positions, rope_dim / 2]    f32 pairs (cos, sin)              read at the end
//   positions, sequences    [m]              int32, of each token              read first
//   step_start, first_row   [slots]          int32, position and row of the first token of a sequence in the step
//   o           [m, heads, head_dim]         BF16                              written
//
//   block = 2 warpgroups, one token, 64 heads; grid = (tokens, head tiles)
//
//   keys    | gather tile i + 1 (cp.async) ......................................... |
//   block   | S = Q K'         | maxima | P = 2^(S - max), sums | rescale, O += P K   |
//
//   shared memory   Q, two tiles of K, P, for each head the maxima and sums of parts of a tile, a factor, a maximum
//   barriers        tile has arrived; maxima written; P and factors written
//
// For S a warpgroup has all heads and half of the keys, for O all heads and half of the columns. Q and K lie in blocks
// of 64 columns; the values are the same blocks, read transposed.
// Exactness: f32 sums, P rounded to BF16, one rounding of O; the order of every sum follows from the position.
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
#line 34 "templates/attend_wgmma/kernel.cu"
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
#line 35 "templates/attend_wgmma/kernel.cu"
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

// mbarrier.expect_tx: `bytes` more must land; no arrival.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
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
#line 36 "templates/attend_wgmma/kernel.cu"
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
#line 37 "templates/attend_wgmma/kernel.cu"
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
#line 38 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids ahead have ended and their writes are visible. Before it a kernel reads
// only what no kernel writes, and writes nothing; every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 39 "templates/attend_wgmma/kernel.cu"
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
#line 40 "templates/attend_wgmma/kernel.cu"
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
#line 41 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/arch/sm90a/wgmma_attention.cuh"
// Warpgroup MMA in the two widths of attention. Both operands lie in shared memory in blocks of 64 columns, 128 bytes a
// row, swizzled by 128 bytes; a block of keys serves as K-major operand of the scores and, transposed, of the values.

// Descriptor of an operand whose rows are the k of the product, in blocks of 64 columns `block_bytes` apart: the
// leading offset leads to the next 64 columns, the stride to the next 8 rows.
__device__ __forceinline__ uint64_t transposed_descriptor(uint32_t smem_address, uint32_t block_bytes) {
  constexpr uint64_t kEightRows = 1024 / 16;
  constexpr uint64_t kSwizzle128 = 1;
  return uint64_t{(smem_address & 0x3FFFF) >> 4} | (uint64_t{block_bytes >> 4} << 16) | (kEightRows << 32) |
         (kSwizzle128 << 62);
}

// wgmma.mma_async m64n32k16: d += a (64 x 16) * b (16 x 32), BF16, both in shared memory and K-major.
__device__ __forceinline__ void wgmma_scores(float (&d)[16], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "l"(a), "l"(b));
}

// wgmma.mma_async m64n256k16: d += a (64 x 16, registers) * b (16 x 256, shared memory, transposed), BF16.
__device__ __forceinline__ void wgmma_values(float (&d)[128], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, "
      "%72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, "
      "%88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, "
      "%104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, "
      "%120, %121, %122, %123, %124, %125, %126, %127}, "
      "{%128, %129, %130, %131}, %132, 1, 1, 1, 1;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
        "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
        "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
        "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
        "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
        "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
        "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
        "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
        "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
        "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#line 42 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/math.cuh"
// Elementary functions from FMA and IEEE operations only, so that their bits are defined: src/quant/math.rs has the
// same operations in the same order and gives the same bits on the CPU.

// 2^exponent for -126 to 127.
__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

// 2^x within 1.1e-7: the fraction by a polynomial, the integer part as two exact factors.
__device__ __forceinline__ float exp2_defined(float x) {
  x = x < -150.0f ? -150.0f : x;
  x = x > 128.5f ? 128.5f : x;
  const float rounded = rintf(x);
  const float f = x - rounded;
  float p = __int_as_float(0x3926093E);
  p = __fmaf_rn(p, f, __int_as_float(0x3AAFDFD1));
  p = __fmaf_rn(p, f, __int_as_float(0x3C1D90E4));
  p = __fmaf_rn(p, f, __int_as_float(0x3D6356D4));
  p = __fmaf_rn(p, f, __int_as_float(0x3E75FDF3));
  p = __fmaf_rn(p, f, __int_as_float(0x3F317219));
  p = __fmaf_rn(p, f, 1.0f);
  const int n = __float2int_rn(rounded);
  const int low = n >> 1;
  return p * power_of_two(low) * power_of_two(n - low);
}

// x * sigmoid(x).
__device__ __forceinline__ float silu(float x) {
  constexpr float kLog2E = 1.44269502162933349609375f;  // 0x3FB8AA3B
  return x / (1.0f + exp2_defined(-x * kLog2E));
}

// silu(min(gate, limit)) * clamp(up, -limit, limit). The comparisons keep a NaN in either operand, as fminf would not.
__device__ __forceinline__ float swiglu(float gate, float up, float limit) {
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return silu(gate) * up;
}
#line 43 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(*m_on_device, m_capacity);
}
#line 44 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/pieces.cuh"
// Rows of BF16 in shared memory as 16-byte pieces, placed so that ldmatrix meets no bank conflict.

// Address of piece `piece` of row `row` in an array at `base` with kPieces pieces a row. Pieces change places within a
// row by a pattern of the row: eight consecutive rows then lie in different banks.
template <int kPieces>
__device__ __forceinline__ uint32_t piece_address(uint32_t base, int row, int piece) {
  static_assert(kPieces == 4 || kPieces % 8 == 0, "rows of 64 bytes, or of a multiple of 128");
  const int pattern = kPieces == 4 ? row >> 1 & 3 : row & 7;
  return base + (row * kPieces + (piece ^ pattern)) * 16;
}
#line 45 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/attended.cuh"
// The keys of a token in the order in which they are summed: its window from the oldest position on, then its entries.

// Which compressed entries are attended.
enum class Compressed { kNone, kListed, kAll };

// Whole tiles of keys, end exclusive.
struct TileRange {
  int begin;
  int end;
};

template <class Config>
struct Attended {
  int first_position;  // oldest position in the window
  int n_window;
  int n_keys;

  __device__ __forceinline__ explicit Attended(int position) {
    first_position = larger(0, position - Config::kWindow + 1);
    n_window = position - first_position + 1;
    const int visible = (position + 1) / Config::kRatio;
    int n_entries = 0;
    if constexpr (Config::kCompressed == Compressed::kListed) n_entries = smaller(visible, Config::kTopK);
    if constexpr (Config::kCompressed == Compressed::kAll) n_entries = visible;
    n_keys = n_window + n_entries;
  }

  // Split boundaries depend on the position and the number of splits only, never on the batch. With fewer tiles than
  // splits some ranges are empty.
  __device__ __forceinline__ TileRange range(int split, int splits) const {
    const int n_tiles = ceil_divide(n_keys, Config::kKeyTile);
    return {n_tiles * split / splits, n_tiles * (split + 1) / splits};
  }
};

// log2(e), rounded.
constexpr float kLog2E = 1.44269502162933349609375f;

// Rotation by minus the angle whose (cos, sin) is `turn`.
__device__ __forceinline__ float2 rotated_back(float2 pair, float2 turn) {
  return make_float2(__fmaf_rn(pair.y, turn.y, pair.x * turn.x), __fmaf_rn(-pair.x, turn.y, pair.y * turn.x));
}
#line 46 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/attention_block.cuh"
// What the blocks of templates/attend and templates/attend_wgmma have in common: how warps share scores, where a
// token's keys lie, and the softmax between the two products.

// Warps across heads and keys while scores are computed, and byte offsets in shared memory.
template <class Config>
struct AttentionBlock {
  static constexpr int kWarps = 8;
  static constexpr int kPieces = Config::kHeadDim / 8;                                  // 16-byte pieces of a key
  static constexpr int kKeyPieces = Config::kKeyTile / 8;                               // and of a row of P
  static constexpr int kHeadWarps = Config::kHeadTile / 16;                             // warps across the heads
  static constexpr int kKeyWarps = smaller(kWarps / kHeadWarps, Config::kKeyTile / 8);  // and across the keys
  static constexpr int kKeyTiles = Config::kKeyTile / 8 / kKeyWarps;                    // 8-key tiles of a warp
  static constexpr int kFetched = Config::kKeyTile / kWarps;                            // keys that a warp fetches
  static constexpr int kTileBytes = Config::kKeyTile * Config::kHeadDim * 2;
  static constexpr int kKeysAt = Config::kHeadTile * Config::kHeadDim * 2;  // queries come first
  static constexpr int kProbabilitiesAt = kKeysAt + 2 * kTileBytes;
  static constexpr int kMaximaAt = kProbabilitiesAt + Config::kHeadTile * Config::kKeyTile * 2;
  static constexpr int kSumsAt = kMaximaAt + 8 * Config::kHeadTile * 4;
  static constexpr int kFactorsAt = kSumsAt + 8 * Config::kHeadTile * 4;
  static constexpr int kRunningAt = kFactorsAt + Config::kHeadTile * 4;
  static constexpr int kBytes = kRunningAt + 2 * Config::kHeadTile * 4;
};

// Where the keys of one token lie.
template <class Config>
struct Keys {
  Attended<Config> attended;
  const bf16* step;   // key of the step's first position of this sequence
  const bf16* ring;   // of its slot
  const bf16* pool;
  const int* pages;   // of its slot
  const int* picks;   // of the token
  int step_start;

  // The j-th key, or null beyond the last.
  __device__ __forceinline__ const bf16* at(int j) const {
    if (j >= attended.n_keys) return nullptr;
    if (j < attended.n_window) {
      const int position = attended.first_position + j;
      if (position >= step_start) return step + int64_t{position - step_start} * Config::kHeadDim;
      return ring + position % Config::kWindow * Config::kHeadDim;
    }
    if constexpr (Config::kCompressed == Compressed::kNone) return nullptr;
    int entry = j - attended.n_window;
    if constexpr (Config::kCompressed == Compressed::kListed) entry = picks[entry];
    const int64_t page = pages[entry / Config::kPageEntries];
    return pool + (page * Config::kPageEntries + entry % Config::kPageEntries) * Config::kHeadDim;
  }
};

// Starts the copies of the queries of the heads from `first_head` on; heads that are not there are zeros. `Place` says
// where a piece of a row lies.
template <class Config, class Place>
__device__ __forceinline__ void fetch_queries(uint32_t smem, const bf16* q, int first_head) {
  using Block = AttentionBlock<Config>;
  for (int i = threadIdx.x; i < Config::kHeadTile * Block::kPieces; i += Block::kWarps * 32) {
    const int head = i / Block::kPieces;
    const int piece = i % Block::kPieces;
    const bool is_there = first_head + head < Config::kHeads;
    const bf16* from = q + (is_there ? int64_t{head} * Config::kHeadDim + piece * 8 : 0);
    copy_async_16_or_zeros(Place::address(smem, head, piece), from, is_there ? 16 : 0);
  }
}

// Starts the copies of a warp's keys of a tile. Lane i knows where key i lies; what is not there becomes zeros, which
// the probability 0 of such a key needs: 0 * NaN would not vanish.
template <class Config, class Place>
__device__ __forceinline__ void fetch_keys(uint32_t tile, const bf16* key, int warp, int lane) {
  using Block = AttentionBlock<Config>;
#pragma unroll
  for (int i = 0; i < Block::kFetched * Block::kPieces / 32; ++i) {
    const int of_warp = (i * 32 + lane) / Block::kPieces;
    const int piece = (i * 32 + lane) % Block::kPieces;
    const uint64_t from = __shfl_sync(0xFFFFFFFFu, reinterpret_cast<uint64_t>(key), of_warp);
    const uint32_t to = Place::address(tile, warp * Block::kFetched + of_warp, piece);
    copy_async_16_or_zeros(to, reinterpret_cast<const uint8_t*>(from) + piece * 16, from != 0 ? 16 : 0);
  }
}

// Scores of 16 heads and some keys, and the running maximum of two of these heads in each lane.
template <class Config>
struct Scores {
  using Block = AttentionBlock<Config>;

  float s[Block::kKeyTiles][4];
  float running[2];  // of the heads g and g + 8, lane = 4 * g + c

  // To powers of two; keys from `n_left` on are not there. Gives the maximum of this warp's keys for each head.
  __device__ __forceinline__ void scale(float* maxima, int n_left, int head_warp, int key_warp, int lane) {
    const float factor = kLog2E / sqrtf(static_cast<float>(Config::kHeadDim));
    float most[2] = {-__int_as_float(0x7F800000), -__int_as_float(0x7F800000)};
#pragma unroll
    for (int t = 0; t < Block::kKeyTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = (key_warp * Block::kKeyTiles + t) * 8 + lane % 4 * 2 + i % 2;
        s[t][i] = key < n_left ? s[t][i] * factor : -__int_as_float(0x7F800000);
        most[i / 2] = fmaxf(most[i / 2], s[t][i]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xFFFFFFFFu, most[r], 2));
      if (lane % 4 == 0) maxima[key_warp * Config::kHeadTile + head_warp * 16 + r * 8 + lane / 4] = most[r];
    }
  }

  // Probabilities against the new maximum: BF16 for the product, f32 sums of eight keys, which do not depend on how the
  // keys are spread over warps. The first warp of a head says by what older sums shrink.
  __device__ __forceinline__ void exponentiate(uint8_t* shared, int head_warp, int key_warp, int lane) {
    const float* maxima = reinterpret_cast<const float*>(shared + Block::kMaximaAt);
    float* sums = reinterpret_cast<float*>(shared + Block::kSumsAt);
    float* factors = reinterpret_cast<float*>(shared + Block::kFactorsAt);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int head = head_warp * 16 + r * 8 + lane / 4;
      float most = running[r];
#pragma unroll
      for (int w = 0; w < Block::kKeyWarps; ++w) most = fmaxf(most, maxima[w * Config::kHeadTile + head]);
      if (key_warp == 0 && lane % 4 == 0) factors[head] = exp2_defined(running[r] - most);
      running[r] = most;
#pragma unroll
      for (int t = 0; t < Block::kKeyTiles; ++t) {
        const int tile = key_warp * Block::kKeyTiles + t;
        const float low = exp2_defined(s[t][2 * r] - most);
        const float high = exp2_defined(s[t][2 * r + 1] - most);
        const uint32_t at = piece_address<Block::kKeyPieces>(Block::kProbabilitiesAt, head, tile);
        *reinterpret_cast<uint32_t*>(shared + at + lane % 4 * 4) = pair_from_floats(low, high);
        float sum = low + high;
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
        if (lane % 4 == 0) sums[tile * Config::kHeadTile + head] = sum;
      }
    }
  }
};

// The sum of probabilities of head `head` with those of a tile.
template <class Config>
__device__ __forceinline__ float with_tile(float sum, const uint8_t* shared, int head) {
  using Block = AttentionBlock<Config>;
  const float factor = reinterpret_cast<const float*>(shared + Block::kFactorsAt)[head];
  const float* sums = reinterpret_cast<const float*>(shared + Block::kSumsAt) + head;
  float of_tile = 0.0f;
#pragma unroll
  for (int i = 0; i < Block::kKeyPieces; ++i) of_tile += sums[i * Config::kHeadTile];
  return __fmaf_rn(sum, factor, of_tile);
}

// What the sums of values of `head` are divided by, inverted.
__device__ __forceinline__ float inverse_of(float sum, float sink, float running) {
  return 1.0f / (sum + exp2_defined(sink * kLog2E - running));
}
#line 47 "templates/attend_wgmma/kernel.cu"

struct Config {
  static constexpr Compressed kCompressed = Compressed::kListed;
  static constexpr int kHeads = 64;
  static constexpr int kHeadDim = 512;
  static constexpr int kRopeDim = 64;          // last columns, rotated
  static constexpr int kWindow = 128;
  static constexpr int kRatio = 4;               // tokens of an entry
  static constexpr int kTopK = 512;                // length of a list
  static constexpr int kPageEntries = 64;
  static constexpr int kHeadTile = 64;        // heads of a block
  static constexpr int kKeyTile = 64;          // keys fetched together
  static constexpr int kSmemBytes = 209664;
};

using Shape = AttentionBlock<Config>;
constexpr int kColumnBlocks = Config::kHeadDim / 64;
constexpr int kBlockBytes = 64 * 128;                 // 64 rows of 64 columns
constexpr int kGroupColumns = Config::kHeadDim / 2;   // of a warpgroup, for O
static_assert(Config::kHeadDim == 512 && Config::kHeadTile == 64 && Config::kKeyTile == 64, "the widths of wgmma");
static_assert(Shape::kBytes == Config::kSmemBytes, "host and device disagree on shared memory");

// Rows of queries and keys in blocks of 64 columns, each swizzled by 128 bytes.
struct Place {
  __device__ __forceinline__ static uint32_t address(uint32_t base, int row, int piece) {
    return piece_address<8>(base + piece / 8 * kBlockBytes, row, piece % 8);
  }
};

// S of all heads and a warpgroup's 32 keys of a tile.
__device__ __forceinline__ void multiply_queries(Scores<Config>& scores, uint32_t queries, uint32_t keys, int group) {
  float sums[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; ++i) pin_register(sums[i]);
  wgmma_fence();
  const uint64_t a = swizzled_descriptor(queries);
  const uint64_t b = swizzled_descriptor(keys + group * (32 * 128));
#pragma unroll
  for (int block = 0; block < kColumnBlocks; ++block) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int offset = (block * kBlockBytes + step * 32) / 16;  // 16 k are 32 bytes, and the descriptor counts 16
      wgmma_scores(sums, a + offset, b + offset);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 16; ++i) pin_register(sums[i]);
#pragma unroll
  for (int i = 0; i < 16; ++i) scores.s[i / 4][i % 4] = sums[i];
}

// Sums of values of two heads a lane (g and g + 8 of its warp's 16) over a warpgroup's columns: for each 8 columns
// (head g, columns 2c and 2c + 1), (head g + 8, the same).
struct Values {
  float o[kGroupColumns / 2];

  __device__ __forceinline__ void rescale(const float* factors, int head) {
    const float upper = factors[head];
    const float lower = factors[head + 8];
    // Maxima settle after a few tiles, and a factor of 1 changes nothing.
    if (!__any_sync(0xFFFFFFFFu, upper != 1.0f || lower != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) o[i] *= i % 4 < 2 ? upper : lower;
  }

  __device__ __forceinline__ void multiply(uint32_t probabilities, uint32_t keys, int group, int head_warp, int lane) {
    uint32_t p[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int head = head_warp * 16 + lane % 16;
      load_matrix_x4(p[step], piece_address<8>(probabilities, head, step * 2 + lane / 16));
    }
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
    wgmma_fence();
    const uint64_t b = transposed_descriptor(keys + group * (kColumnBlocks / 2 * kBlockBytes), kBlockBytes);
#pragma unroll
    for (int step = 0; step < 4; ++step) wgmma_values(o, p[step], b + step * (16 * 128 / 16));
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
  }

  // BF16 rows of the lane's heads, divided by the denominators and rotated back. `to` is the row of the first head.
  __device__ __forceinline__ void store(bf16* to, const float* inverses, const float2* turns, int n_heads, int group,
                                        int head, int lane) const {
#pragma unroll
    for (int n = 0; n < kGroupColumns / 8; ++n) {
      const int column = group * kGroupColumns + n * 8 + lane % 4 * 2;
      const int rotated = column - (Config::kHeadDim - Config::kRopeDim);
      const float2 turn = rotated >= 0 ? turns[rotated / 2] : make_float2(1.0f, 0.0f);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = head + r * 8;
        if (row >= n_heads) continue;
        float2 pair = make_float2(o[n * 4 + r * 2] * inverses[row], o[n * 4 + r * 2 + 1] * inverses[row]);
        if (rotated >= 0) pair = rotated_back(pair, turn);
        *reinterpret_cast<uint32_t*>(to + row * Config::kHeadDim + column) = pair_from_floats(pair.x, pair.y);
      }
    }
  }
};

// What a block has summed over all tiles.
struct Block {
  Values values = {};
  Scores<Config> scores;
  float sum = 0.0f;  // of probabilities, in thread h for head h

  __device__ __forceinline__ void run(uint8_t* shared, const Keys<Config>& keys, int n_tiles, int warp, int lane) {
    const uint32_t smem = smem_address(shared);
    const int head_warp = warp % 4;
    const int group = warp / 4;
    float* maxima = reinterpret_cast<float*>(shared + Shape::kMaximaAt);
    const float* factors = reinterpret_cast<const float*>(shared + Shape::kFactorsAt);
    scores.running[0] = scores.running[1] = -__int_as_float(0x7F800000);
    const auto key_of = [&](int tile) {
      return keys.at(tile * Config::kKeyTile + warp * Shape::kFetched + lane % Shape::kFetched);
    };
    fetch_keys<Config, Place>(smem + Shape::kKeysAt, key_of(0), warp, lane);
    commit_copies();
    // Addresses take two dependent loads: they are looked up a tile ahead of their copies.
    const bf16* next = key_of(1);
    for (int tile = 0; tile < n_tiles; ++tile) {
      const uint32_t tile_keys = smem + Shape::kKeysAt + (tile & 1) * Shape::kTileBytes;
      wait_copies<0>();
      fence_async_proxy();
      __syncthreads();  // the tile has arrived, and nobody reads the other one or P any more
      if (tile + 1 < n_tiles) {
        fetch_keys<Config, Place>(smem + Shape::kKeysAt + (~tile & 1) * Shape::kTileBytes, next, warp, lane);
        next = key_of(tile + 2);
      }
      commit_copies();
      multiply_queries(scores, smem, tile_keys, group);
      scores.scale(maxima, keys.attended.n_keys - tile * Config::kKeyTile, head_warp, group, lane);
      __syncthreads();  // maxima are written
      scores.exponentiate(shared, head_warp, group, lane);
      __syncthreads();  // P, sums and factors are written
      if (threadIdx.x < Config::kHeadTile) sum = with_tile<Config>(sum, shared, threadIdx.x);
      values.rescale(factors, head_warp * 16 + lane / 4);
      values.multiply(smem + Shape::kProbabilitiesAt, tile_keys, group, head_warp, lane);
    }
    if (group == 0 && lane % 4 == 0) {
      float* running = reinterpret_cast<float*>(shared + Shape::kRunningAt);
      running[head_warp * 16 + lane / 4] = scores.running[0];
      running[head_warp * 16 + 8 + lane / 4] = scores.running[1];
    }
    __syncthreads();  // maxima are written, factors are read
  }
};

extern "C" __global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    attend_wgmma(const bf16* q, const bf16* kv_step, const bf16* kv_ring, const bf16* pool, const int* table,
           const int* picks, const float* sinks, const float2* rope, const int* positions, const int* sequences,
           const int* step_start, const int* first_row, bf16* o, float* workspace, const int* m_on_device, int m,
           int max_pages) {
  extern __shared__ __align__(1024) uint8_t shared[];
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.x;
  if (token >= actual_tokens(m_on_device, m)) return;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int position = positions[token];
  const int slot = sequences[token];
  const Attended<Config> attended(position);
  const Keys<Config> keys{attended,
                  kv_step + int64_t{first_row[slot]} * Config::kHeadDim,
                  kv_ring + int64_t{slot} * Config::kWindow * Config::kHeadDim,
                  pool,
                  table + int64_t{slot} * max_pages,
                  picks + int64_t{token} * Config::kTopK,
                  step_start[slot]};
  const int first_head = blockIdx.y * Config::kHeadTile;
  const int n_heads = smaller(Config::kHeadTile, Config::kHeads - first_head);
  const int64_t row = int64_t{token} * Config::kHeads + first_head;
  fetch_queries<Config, Place>(smem_address(shared), q + row * Config::kHeadDim, first_head);
  Block block;
  block.run(shared, keys, ceil_divide(attended.n_keys, Config::kKeyTile), warp, lane);
  const float* running = reinterpret_cast<const float*>(shared + Shape::kRunningAt);
  float* inverses = reinterpret_cast<float*>(shared + Shape::kFactorsAt);
  if (threadIdx.x < n_heads) {
    inverses[threadIdx.x] = inverse_of(block.sum, sinks[first_head + threadIdx.x], running[threadIdx.x]);
  }
  __syncthreads();
  const float2* turns = rope + int64_t{position} * (Config::kRopeDim / 2);
  const int head = warp % 4 * 16 + lane / 4;
  block.values.store(o + row * Config::kHeadDim, inverses, turns, n_heads, warp / 4, head, lane);
}
