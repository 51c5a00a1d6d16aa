#line 4 "templates/attend_wgmma/kernel.cu"
// Generated from templates/attend_wgmma for sm90a. Do not edit.
//
// attend_wgmma: O[t, h, :] = rotated back(sum_j p_j * K_j) as in templates/attend, for one split: both products on
// wgmma, which needs half of the shared-memory reads. 64 heads, 64 keys, 512 columns.
//
//   operand     shape                        in memory                         written / read
//   q           [m, heads, head_dim]         BF16, before norm and rotation    read once
//   kv_step     [m, head_dim]                BF16, keys of this step           gathered by rows
//   kv_ring     [slots, window, head_dim]    BF16, position p in p % window    gathered by rows
//   pool        [pages, 64, head_dim]        BF16, compressed entries          gathered by rows
//   table       [slots, max_pages]           int32, pages of entry w / 64      read for each key
//   picks       [m, top_k]                   int32, entries of a list          read for each key
//   sinks       [heads]                      f32                               read first
//   rope        [positions, rope_dim / 2]    f32 pairs (cos, sin)              read with Q and at the end
//   positions, sequences    [m]              int32, of each token              read a token ahead
//   step_start, first_row   [slots]          int32, position and row of the first token of a sequence in the step
//   o           [m, heads, head_dim]         BF16                              written
//   workspace, mix                           as in templates/attend            not used
//
//   block = 3 warpgroups, 64 heads; grid = (blocks, head tiles); a block takes every gridDim.x-th token
//
//   scores     | Q: norm  | S = Q K' | P of 32 keys | P of 32, O left += P K | O left += P K  | S of the next tile
//   values     | and turn |                                                  | O right += P K |
//   producer   | gathers tile i + 1, then i + 2 once both have read tile i; Q of the next token behind the last S
//
//   shared memory   Q, two tiles of K, what the scores group hands over of two tiles and at the end, mbarriers
//   barrier         arrivals            announces
//   tile full[s]    128, when landed    the 64 keys of a tile lie in slot s
//   tile free[s]    8, a consumer warp  O has been summed over them
//   query full      128, when landed    the queries of the token lie in shared memory
//   query free      4, a scores warp    the last S of the token is there
//   kNormalised     256 threads         both groups have normalised their heads; only the scores group waits
//   kHanded[s, w]   64 threads          warp w of the scores group has left P and factors for its twin
//   kSummed[w]      64 threads          the same for the denominators
//
// One group computes S of all heads and keys: two with half of the columns each would have to add them up, two with
// half of the keys would read the queries twice. Both sum O, each over half of the columns. Lanes of the same place in
// the two groups need the same P as operands: so P goes from lane to lane, and twin warps wait for each other only. The
// producer looks up the keys of a tile before its slot is free, and has a whole tile's time for it.
// What is handed over lies in the slot of its tile and needs no barrier that frees it: the keys of a tile arrive only
// after both groups have used up what was in the slot before, and what is handed over follows from these keys. For the
// same reason a kHanded is met again only after both its warps have left it, and kNormalised and kSummed a token later.
// Exactness: f32 sums, P rounded to BF16, one rounding of O; the order of every sum follows from the position, and
// what P refers to from the keys in that order.
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
#line 49 "templates/attend_wgmma/kernel.cu"
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
#line 50 "templates/attend_wgmma/kernel.cu"
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
#line 51 "templates/attend_wgmma/kernel.cu"
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
#line 52 "templates/attend_wgmma/kernel.cu"
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
#line 53 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 54 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/arch/sm80/named_barrier.cuh"
// Barriers of some of a block's warps.

// bar.sync: joins the `threads` threads that call it with this `barrier` (1 to 15; __syncthreads is barrier 0).
__device__ __forceinline__ void join_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// bar.arrive: counts towards what bar.sync of other threads waits for, and goes on.
__device__ __forceinline__ void arrive_at(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
#line 55 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/arch/sm90a/prefetch.cuh"
// What is not copied yet, brought closer.

// cp.async.bulk.prefetch.L2: `bytes` (a multiple of 16) from memory to the L2; a hint, which nothing waits for.
__device__ __forceinline__ void prefetch_bulk(const void* global_from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global_from), "r"(bytes) : "memory");
}
#line 56 "templates/attend_wgmma/kernel.cu"
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
#line 57 "templates/attend_wgmma/kernel.cu"
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

// wgmma.mma_async m64n64k16: d += a (64 x 16) * b (16 x 64), BF16, both in shared memory and K-major.
__device__ __forceinline__ void wgmma_scores(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
        "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
        "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
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
#line 58 "templates/attend_wgmma/kernel.cu"
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
#line 59 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/elementary.cuh"
// More elementary functions from FMA and IEEE operations, beside those of lib/math.cuh: the same bits on every chip.
// NaN in is NaN out.

// e^x within 2e-7: what is lost in rounding x * log2(e) is put back, since it would cost |x| * 6e-8. Beyond 88 it is
// e^88, so that the correction never meets an infinity.
__device__ __forceinline__ float exp_defined(float x) {
  constexpr float kLog2E = 1.44269502162933349609375f;  // 0x3FB8AA3B
  constexpr float kLog2ERest = 1.92596299e-8f;          // log2(e) - kLog2E
  constexpr float kLn2 = 0.693147182464599609375f;
  x = x < -104.0f ? -104.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float product = x * kLog2E;
  const float rest = __fmaf_rn(x, kLog2ERest, __fmaf_rn(x, kLog2E, -product));
  const float power = exp2_defined(product);
  return __fmaf_rn(power, rest * kLn2, power);
}

// log(1 + x) for 0 <= x <= 1: 2 atanh(z), z = x / (2 + x) <= 1/3, by its series to z^17.
__device__ __forceinline__ float log1p_of_fraction(float x) {
  const float z = x / (2.0f + x);
  const float square = z * z;
  float p = 1.0f / 17.0f;
  p = __fmaf_rn(p, square, 1.0f / 15.0f);
  p = __fmaf_rn(p, square, 1.0f / 13.0f);
  p = __fmaf_rn(p, square, 1.0f / 11.0f);
  p = __fmaf_rn(p, square, 1.0f / 9.0f);
  p = __fmaf_rn(p, square, 1.0f / 7.0f);
  p = __fmaf_rn(p, square, 1.0f / 5.0f);
  p = __fmaf_rn(p, square, 1.0f / 3.0f);
  p = __fmaf_rn(p * square, 2.0f * z, 2.0f * z);
  return p;
}

// log(1 + e^x), without overflow and without losing a small result.
__device__ __forceinline__ float softplus(float x) {
  return (x > 0.0f ? x : 0.0f) + log1p_of_fraction(exp_defined(-fabsf(x)));
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_defined(-x)); }

// 1 / sqrt(x), two IEEE operations.
__device__ __forceinline__ float reciprocal_root(float x) { return 1.0f / sqrtf(x); }
#line 60 "templates/attend_wgmma/kernel.cu"
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
#line 61 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/exponential.cuh"
// Powers for probabilities: the same bits on every chip, and those of src/quant/exponential.rs.

// 2^x for x <= 0, as probabilities need it, in 12 instructions: within 7.1e-8 from -126 up, 0 below -126.5, so for
// -infinity too. A little above 0, where a maximum was rounded down, it holds as well (to 127). NaN in is NaN out.
// In this order: `x < -127 ? -127 : x`, a comparison, which keeps NaN; u = x + 1.5 * 2^23, whose last bits are n, x
// rounded to the nearest integer, ties to even; f = x - (u - 1.5 * 2^23), exact; p as in exp2_defined; p * 2^n, the
// power made of exponent bits, which for n = -127 are those of 0.
__device__ __forceinline__ float exp2_of_negative(float x) {
  constexpr float kRound = 12582912.0f;
  x = x < -127.0f ? -127.0f : x;
  const float u = x + kRound;
  const float f = x - (u - kRound);
  float p = __int_as_float(0x3926093E);
  p = __fmaf_rn(p, f, __int_as_float(0x3AAFDFD1));
  p = __fmaf_rn(p, f, __int_as_float(0x3C1D90E4));
  p = __fmaf_rn(p, f, __int_as_float(0x3D6356D4));
  p = __fmaf_rn(p, f, __int_as_float(0x3E75FDF3));
  p = __fmaf_rn(p, f, __int_as_float(0x3F317219));
  p = __fmaf_rn(p, f, 1.0f);
  // NaN gives any power here, and p carries it: adding to the exponent of p in place of the product would lose it.
  return p * __uint_as_float((__float_as_uint(u) << 23) + 0x3F800000u);
}
#line 62 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/lanes.cuh"
// Sums over the lanes of a warp and the warps of a block, in an order that never changes.

// The sum over all lanes, the same bits in each: a butterfly adds the same pairs on both sides.
__device__ __forceinline__ float lane_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// The largest over `width` neighbouring lanes, a power of two. A NaN takes no part.
__device__ __forceinline__ float lane_maximum(float value, int width) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    if (step < width) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  }
  return value;
}

// One step of spread_sums and those after it: as a template, for only constant places of `values` stay in registers.
template <int kWidth>
__device__ __forceinline__ void spread_step(float (&values)[32], int lane) {
  const bool is_upper = (lane & kWidth) != 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float kept = is_upper ? values[i + kWidth] : values[i];
    const float given = is_upper ? values[i] : values[i + kWidth];
    values[i] = kept + __shfl_xor_sync(~0u, given, kWidth);
  }
  if constexpr (kWidth > 1) spread_step<kWidth / 2>(values, lane);
}

// Sums 32 values over the lanes at once; lane i gets the sum of value i. In each step a lane gives away the half of its
// values that the other one keeps: 31 shuffles in place of 160.
__device__ __forceinline__ float spread_sums(float (&values)[32], int lane) {
  spread_step<16>(values, lane);
  return values[0];
}

// The sum over the threads of `n_warps` warps, warp by warp in ascending order; `sync` joins them. `shared` has a float
// for each of them.
template <class Sync>
__device__ __forceinline__ float thread_sum(float value, float* shared, int n_warps, Sync sync) {
  value = lane_sum(value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  sync();
  float sum = 0.0f;
  for (int warp = 0; warp < n_warps; ++warp) sum += shared[warp];
  return sum;
}
#line 63 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/lane_transpose.cuh"
// What lanes trade to store whole pieces: an MMA leaves two columns of a row in each of four lanes.

// Transposes 4 x 4 words over four neighbouring lanes: word j of lane c becomes word c of lane j.
__device__ __forceinline__ void transpose_in_four(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int width = 1; width <= 2; width *= 2) {
    const bool is_upper = (lane & width) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & width) != 0) continue;
      const uint32_t given = is_upper ? words[i] : words[i + width];
      const uint32_t taken = __shfl_xor_sync(~0u, given, width);
      words[i] = is_upper ? taken : words[i];
      words[i + width] = is_upper ? words[i + width] : taken;
    }
  }
}
#line 64 "templates/attend_wgmma/kernel.cu"
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
#line 65 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/rotary.cuh"
// Rotation of neighbouring elements by an angle of their position: (a, b) -> (a cos - b sin, a sin + b cos).

// Rotates `count` elements, pairs of a head from pair `first_pair` on; `table` is the (cos, sin) row of the position.
template <int kCount>
__device__ __forceinline__ void rotate_pairs(float (&values)[kCount], const float2* table, int first_pair) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float2 turn = table[first_pair + i];
    const float a = values[2 * i], b = values[2 * i + 1];
    values[2 * i] = a * turn.x - b * turn.y;
    values[2 * i + 1] = a * turn.y + b * turn.x;
  }
}
#line 66 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 67 "templates/attend_wgmma/kernel.cu"
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
#line 68 "templates/attend_wgmma/kernel.cu"
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
#line 69 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/attention_block.cuh"
// What the blocks of templates/attend and templates/attend_wgmma have in common: how warps share scores, where a
// token's keys lie, what becomes of its queries, and the softmax between the two products.

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

// Starts the copies of a warp's heads, every eighth from `first_head` on; heads that are not there are zeros. `Place`
// says where a piece of a row lies. A lane copies what it will normalise: no barrier has to stand between.
template <class Config, class Place>
__device__ __forceinline__ void fetch_queries(uint32_t smem, const bf16* q, int first_head, int warp, int lane) {
  using Block = AttentionBlock<Config>;
#pragma unroll
  for (int head = warp; head < Config::kHeadTile; head += Block::kWarps) {
    const bool is_there = first_head + head < Config::kHeads;
    for (int piece = lane; piece < Block::kPieces; piece += 32) {
      const bf16* from = q + (is_there ? int64_t{head} * Config::kHeadDim + piece * 8 : 0);
      copy_async_16_or_zeros(Place::address(smem, head, piece), from, is_there ? 16 : 0);
    }
  }
}

// Divides a warp's heads by their root mean squares and rotates their ends by `turns`, in place and rounded to BF16
// once. The copies that this thread has started have arrived. Angles are looked up where they are used: many heads
// leave no registers for them. (lib/head_norm.cuh asks for them early.)
template <class Config, class Place>
__device__ __forceinline__ void normalise_queries(uint8_t* shared, const float2* turns, int warp, int lane) {
  using Block = AttentionBlock<Config>;
  constexpr int kChunks = ceil_divide(Block::kPieces, 32);
  static_assert(Config::kRopeDim % 8 == 0, "a piece is rotated, or it is not");
#pragma unroll 2
  for (int head = warp; head < Config::kHeadTile; head += Block::kWarps) {
    float values[kChunks][8] = {};
    float squares = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int piece = chunk * 32 + lane;
      const uint8_t* from = shared + Place::address(0, head, piece);
      if (piece < Block::kPieces) load_eight(values[chunk], reinterpret_cast<const bf16*>(from));
#pragma unroll
      for (int i = 0; i < 8; ++i) squares = __fmaf_rn(values[chunk][i], values[chunk][i], squares);
    }
    const float factor = reciprocal_root(lane_sum(squares) / Config::kHeadDim + Config::kNormEpsilon);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int piece = chunk * 32 + lane;
      if (piece >= Block::kPieces) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) values[chunk][i] *= factor;
      const int rotated = piece * 8 - (Config::kHeadDim - Config::kRopeDim);
      if (rotated >= 0) rotate_pairs(values[chunk], turns, rotated / 2);
      store_eight(reinterpret_cast<bf16*>(shared + Place::address(0, head, piece)), values[chunk]);
    }
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
#line 70 "templates/attend_wgmma/kernel.cu"
#line 1 "templates/lib/head_norm.cuh"
// Norm and rotation of the queries of a token where they lie in shared memory: several heads of a warp at once.

// By what a lane rotates the pieces of a head that it normalises: the row `turns` of the position, asked for early.
template <class Config>
struct HeadTurns {
  static constexpr int kChunks = ceil_divide(AttentionBlock<Config>::kPieces, 32);
  float2 of[kChunks][4];

  __device__ __forceinline__ HeadTurns(const float2* turns, int lane) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int piece = chunk * 32 + lane;
      const int rotated = piece * 8 - (Config::kHeadDim - Config::kRopeDim);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        of[chunk][i] = make_float2(1.0f, 0.0f);
        if (piece < AttentionBlock<Config>::kPieces && rotated >= 0) of[chunk][i] = turns[rotated / 2 + i];
      }
    }
  }
};

// Divides a warp's heads by their root mean squares and rotates their ends, in place and rounded to BF16 once. kAtOnce
// heads are under way together, and each of as many lanes finds the factor of one: root and division are long, and
// branch.
template <class Config, class Place, int kAtOnce>
__device__ __forceinline__ void normalise_heads(uint8_t* shared, const HeadTurns<Config>& turns, int warp, int lane) {
  using Block = AttentionBlock<Config>;
  constexpr int kChunks = HeadTurns<Config>::kChunks;
  static_assert(Config::kRopeDim % 8 == 0, "a piece is rotated, or it is not");
  static_assert(Config::kHeadTile % (kAtOnce * Block::kWarps) == 0 && kAtOnce <= 32, "whole turns, a lane a head");
  for (int first = warp; first < Config::kHeadTile; first += kAtOnce * Block::kWarps) {
    float values[kAtOnce][kChunks][8] = {};
    float factor_of_lane = 0.0f;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float squares = 0.0f;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int piece = chunk * 32 + lane;
        const uint8_t* from = shared + Place::address(0, first + i * Block::kWarps, piece);
        if (piece < Block::kPieces) load_eight(values[i][chunk], reinterpret_cast<const bf16*>(from));
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = __fmaf_rn(values[i][chunk][j], values[i][chunk][j], squares);
      }
      const float sum = lane_sum(squares);
      if (lane == i) factor_of_lane = sum;
    }
    factor_of_lane = reciprocal_root(factor_of_lane / Config::kHeadDim + Config::kNormEpsilon);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float factor = __shfl_sync(0xFFFFFFFFu, factor_of_lane, i);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int piece = chunk * 32 + lane;
        if (piece >= Block::kPieces) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) values[i][chunk][j] *= factor;
        const int rotated = piece * 8 - (Config::kHeadDim - Config::kRopeDim);
        if (rotated >= 0) rotate_pairs(values[i][chunk], turns.of[chunk], 0);
        const uint32_t to = Place::address(0, first + i * Block::kWarps, piece);
        store_eight(reinterpret_cast<bf16*>(shared + to), values[i][chunk]);
      }
    }
  }
}
#line 71 "templates/attend_wgmma/kernel.cu"

struct Config {
  static constexpr Compressed kCompressed = Compressed::kListed;
  static constexpr int kHeads = 64;
  static constexpr int kHeadDim = 512;
  static constexpr int kRopeDim = 64;          // last columns, rotated
  static constexpr float kNormEpsilon = 1e-6f;
  static constexpr int kWindow = 128;
  static constexpr int kRatio = 4;               // tokens of an entry
  static constexpr int kTopK = 512;                // length of a list
  static constexpr int kPageEntries = 64;
  static constexpr int kHeadTile = 64;        // heads of a block
  static constexpr int kKeyTile = 64;          // keys fetched together
  static constexpr int kSmemBytes = 216112;
};

using Shape = AttentionBlock<Config>;
constexpr int kColumnBlocks = Config::kHeadDim / 64;
constexpr int kBlockBytes = 64 * 128;                 // 64 rows of 64 columns
constexpr int kGroupColumns = Config::kHeadDim / 2;   // of a warpgroup, for O
constexpr int kKeyTiles = Config::kKeyTile / 8;       // 8-key tiles of S
constexpr int kHalfSteps = kKeyTiles / 4;             // products over 16 keys each in half a tile
constexpr int kProducerWarps = 4;
constexpr int kProducerRows = Config::kHeadTile / kProducerWarps;  // of 64, queries or keys, that a warp copies
constexpr int kConsumerThreads = Shape::kWarps * 32;
constexpr int kProducerRegisters = 72;                // of the 168 that each of 384 threads starts with
constexpr int kConsumerRegisters = 216;
static_assert(Config::kHeadDim == 512 && Config::kHeadTile == 64 && Config::kKeyTile == 64, "the widths of wgmma");
static_assert(2 * kConsumerRegisters + kProducerRegisters <= 3 * 168, "what some take the others have given");

// Barriers of named threads; __syncthreads is 0. Those of twin warps are counted up from here.
constexpr int kNormalised = 1;
constexpr int kHanded = 2;   // two slots of four warps
constexpr int kSummed = 10;  // four warps

// Shared memory behind queries and keys. What is handed over has a place for each of the 128 threads of a group.
struct Room {
  static constexpr int kFactorsAt = 128 * 64;  // behind P, 64 bytes of a lane
  static constexpr int kHandedBytes = kFactorsAt + 128 * 8;
  static constexpr int kHandedAt = Shape::kKeysAt + 2 * Shape::kTileBytes;
  static constexpr int kInversesAt = kHandedAt + 2 * kHandedBytes;
  static constexpr int kTileBarriersAt = kInversesAt + 128 * 8;
  static constexpr int kQueryBarriersAt = kTileBarriersAt + Ring<2>::kBarrierBytes;
  static constexpr int kBytes = kQueryBarriersAt + Ring<1>::kBarrierBytes;
};
static_assert(Room::kBytes == Config::kSmemBytes, "host and device disagree on shared memory");

// Rows of queries and keys in blocks of 64 columns, each swizzled by 128 bytes.
struct Place {
  __device__ __forceinline__ static uint32_t address(uint32_t base, int row, int piece) {
    return piece_address<8>(base + piece / 8 * kBlockBytes, row, piece % 8);
  }
};

// S of all heads and keys of a tile: for each 8 keys (head g, keys 2c and 2c + 1), (head g + 8, the same).
__device__ __forceinline__ void multiply_queries(float (&s)[4 * kKeyTiles], uint32_t queries, uint32_t keys) {
#pragma unroll
  for (int i = 0; i < 4 * kKeyTiles; ++i) s[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < 4 * kKeyTiles; ++i) pin_register(s[i]);
  wgmma_fence();
  const uint64_t a = swizzled_descriptor(queries);
  const uint64_t b = swizzled_descriptor(keys);
#pragma unroll
  for (int block = 0; block < kColumnBlocks; ++block) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int offset = (block * kBlockBytes + step * 32) / 16;  // 16 k are 32 bytes, and the descriptor counts 16
      wgmma_scores(s, a + offset, b + offset);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 4 * kKeyTiles; ++i) pin_register(s[i]);
}

// From a score to a power of two.
__device__ __forceinline__ float score_scale() { return kLog2E / sqrtf(static_cast<float>(Config::kHeadDim)); }

// P of a tile, as the left operands of 16 keys each, and by what older sums shrink, of a lane's two heads.
struct Probabilities {
  uint32_t p[kKeyTiles / 2][4];
  float factors[2];

  // Of 32 keys that are not there.
  template <int kHalf>
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = kHalf * kHalfSteps * 4; i < (kHalf + 1) * kHalfSteps * 4; ++i) p[i / 4][i % 4] = 0;
  }

  // Those of 32 keys to `slot` in shared memory; `place` is the thread of the group: neighbours write neighbouring 16
  // bytes. The second half brings the factors along.
  template <int kHalf>
  __device__ __forceinline__ void hand_over(uint8_t* slot, int place) const {
#pragma unroll
    for (int i = kHalf * kHalfSteps; i < (kHalf + 1) * kHalfSteps; ++i) {
      reinterpret_cast<uint4*>(slot)[i * 128 + place] = make_uint4(p[i][0], p[i][1], p[i][2], p[i][3]);
    }
    if (kHalf == 1) reinterpret_cast<float2*>(slot + Room::kFactorsAt)[place] = make_float2(factors[0], factors[1]);
  }

  __device__ __forceinline__ void take(const uint8_t* slot, int place) {
#pragma unroll
    for (int i = 0; i < kKeyTiles / 2; ++i) {
      const uint4 words = reinterpret_cast<const uint4*>(slot)[i * 128 + place];
      p[i][0] = words.x;
      p[i][1] = words.y;
      p[i][2] = words.z;
      p[i][3] = words.w;
    }
    const float2 pair = reinterpret_cast<const float2*>(slot + Room::kFactorsAt)[place];
    factors[0] = pair.x;
    factors[1] = pair.y;
  }
};

// The softmax of a lane's two heads, g and g + 8 of its warp's 16, over the keys so far. Probabilities are 2^(score -
// reference); the reference is the largest score of the first tile, and moves to a later one that is more than
// kMostAhead above it. So sums are rarely rescaled, a probability is at most 2^kMostAhead, and BF16 and f32 round it as
// they round one below 1.
struct Softmax {
  static constexpr float kMostAhead = 8.0f;
  float reference[2] = {-__int_as_float(0x7F800000), -__int_as_float(0x7F800000)};
  float sums[2] = {};  // of this lane's probabilities: those of two keys of each eight

  // Looks at the scores of a tile before their probabilities are asked for; keys from `n_left` on are not there.
  __device__ __forceinline__ void follow(float (&factors)[2], float (&s)[4 * kKeyTiles], int n_left, int lane) {
    if (n_left < Config::kKeyTile) {  // the last tile only
#pragma unroll
      for (int i = 0; i < 4 * kKeyTiles; ++i) {
        if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= n_left) s[i] = -__int_as_float(0x7F800000);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(s[r * 2], s[r * 2 + 1]);
#pragma unroll
      for (int tile = 1; tile < kKeyTiles; ++tile) {
        most = fmaxf(most, fmaxf(s[tile * 4 + r * 2], s[tile * 4 + r * 2 + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2)) * score_scale();
      const float now = most > reference[r] + kMostAhead ? most : reference[r];
      factors[r] = exp2_of_negative(reference[r] - now);  // exactly 1 if it stays
      reference[r] = now;
      sums[r] *= factors[r];
    }
  }

  // Probabilities of one half of the tile's keys.
  template <int kHalf>
  __device__ __forceinline__ void exponentiate(Probabilities& to, const float (&s)[4 * kKeyTiles]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = 0.0f;
#pragma unroll
      for (int tile = kHalf * 2 * kHalfSteps; tile < (kHalf + 1) * 2 * kHalfSteps; ++tile) {
        const float low = exp2_of_negative(__fmaf_rn(s[tile * 4 + r * 2], score_scale(), -reference[r]));
        const float high = exp2_of_negative(__fmaf_rn(s[tile * 4 + r * 2 + 1], score_scale(), -reference[r]));
        to.p[tile / 2][tile % 2 * 2 + r] = pair_from_floats(low, high);
        sum += low + high;
      }
      sums[r] += sum;
    }
  }

  // What the sums of values of a head are divided by, inverted.
  __device__ __forceinline__ float inverse(int r, float sink) const {
    float sum = sums[r] + __shfl_xor_sync(0xFFFFFFFFu, sums[r], 1);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    return inverse_of(sum, sink, reference[r]);
  }
};

// Sums of values of a lane's two heads over a warpgroup's columns: for each 8 columns (head g, columns 2c and 2c + 1),
// (head g + 8, the same).
template <int kGroup>
struct Values {
  float o[kGroupColumns / 2] = {};

  __device__ __forceinline__ void rescale(const float (&factors)[2]) {
    if (__any_sync(0xFFFFFFFFu, factors[0] != 1.0f || factors[1] != 1.0f)) {
#pragma unroll
      for (int i = 0; i < kGroupColumns / 2; ++i) o[i] *= factors[i / 2 % 2];
    }
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
  }

  // Starts the products of 32 keys. Until they have been waited for, nobody may touch the sums, nor P of these keys.
  template <int kHalf>
  __device__ __forceinline__ void start(const Probabilities& of, uint32_t keys) {
    wgmma_fence();
    const uint64_t b = transposed_descriptor(keys + kGroup * (kColumnBlocks / 2 * kBlockBytes), kBlockBytes);
#pragma unroll
    for (int i = kHalf * kHalfSteps; i < (kHalf + 1) * kHalfSteps; ++i) {
      wgmma_values(o, of.p[i], b + i * (16 * 128 / 16));
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void wait() {
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kGroupColumns / 2; ++i) pin_register(o[i]);
  }

  // BF16 rows of the lane's heads, divided by the denominators and rotated back; 32 columns at a time change lanes, so
  // that each stores 16 bytes. `to` is the row of the first head.
  __device__ __forceinline__ void store(bf16* to, float2 inverses, const float2* turns, int n_heads, int head,
                                        int lane) const {
#pragma unroll
    for (int n = 0; n < kGroupColumns / 8; n += 4) {
      uint32_t words[2][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int rotated = kGroup * kGroupColumns + (n + j) * 8 - (Config::kHeadDim - Config::kRopeDim);
        const float2 turn = rotated >= 0 ? turns[rotated / 2 + lane % 4] : make_float2(1.0f, 0.0f);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int i = (n + j) * 4 + r * 2;
          const float inverse = r == 0 ? inverses.x : inverses.y;
          float2 pair = make_float2(o[i] * inverse, o[i + 1] * inverse);
          if (rotated >= 0) pair = rotated_back(pair, turn);
          words[r][j] = pair_from_floats(pair.x, pair.y);
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        transpose_in_four(words[r], lane);
        const int column = kGroup * kGroupColumns + (n + lane % 4) * 8;
        bf16* place = to + (head + r * 8) * Config::kHeadDim + column;
        if (head + r * 8 >= n_heads) continue;
        *reinterpret_cast<uint4*>(place) = make_uint4(words[r][0], words[r][1], words[r][2], words[r][3]);
      }
    }
  }
};

// The arrays of a launch, and which heads and tokens are this block's.
struct Launch {
  const bf16* q;
  const bf16* kv_step;
  const bf16* kv_ring;
  const bf16* pool;
  const int* table;
  const int* picks;
  const float* sinks;
  const float2* rope;
  const int* positions;
  const int* sequences;
  const int* step_start;
  const int* first_row;
  bf16* o;
  int max_pages;
  int n_tokens;
  int first_head;
  int n_heads;

  // Of the block's first head of a token, in q and in o.
  __device__ __forceinline__ int64_t row(int token) const {
    return (int64_t{token} * Config::kHeads + first_head) * Config::kHeadDim;
  }

  __device__ __forceinline__ Keys<Config> keys_of(int token) const {
    const int slot = sequences[token];
    return {Attended<Config>(positions[token]),
            kv_step + int64_t{first_row[slot]} * Config::kHeadDim,
            kv_ring + int64_t{slot} * Config::kWindow * Config::kHeadDim,
            pool,
            table + int64_t{slot} * max_pages,
            picks + int64_t{token} * Config::kTopK,
            step_start[slot]};
  }
};

// The barriers of a block and what of its shared memory is where.
struct Shared {
  uint8_t* at;

  __device__ __forceinline__ Ring<2> tiles() const { return {smem_address(at) + Room::kTileBarriersAt}; }
  __device__ __forceinline__ Ring<1> queries() const { return {smem_address(at) + Room::kQueryBarriersAt}; }
  __device__ __forceinline__ uint32_t keys(int slot) const {
    return smem_address(at) + Shape::kKeysAt + slot * Shape::kTileBytes;
  }
  __device__ __forceinline__ uint8_t* handed(int slot) const {
    return at + Room::kHandedAt + slot * Room::kHandedBytes;
  }
  __device__ __forceinline__ float2* inverses() const { return reinterpret_cast<float2*>(at + Room::kInversesAt); }
};

// Starts the copies of a warp's 16 rows of 64, queries or keys. Lane i knows where row i lies; what is not there comes
// as zeros, which the probability 0 of such a key needs: 0 * NaN would not vanish. Eight rows at a time, since all
// addresses at once take more registers than a producer has.
__device__ __forceinline__ void fetch_rows(uint32_t tile, const bf16* row_of_lane, int warp, int lane) {
#pragma unroll 1
  for (int first = 0; first < kProducerRows; first += 8) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint64_t row = __shfl_sync(0xFFFFFFFFu, reinterpret_cast<uint64_t>(row_of_lane), first + i);
      const uint8_t* from = reinterpret_cast<const uint8_t*>(row) + lane * 16;
      const uint32_t to = Place::address(tile, warp * kProducerRows + first + i, lane);
      const int there = row != 0 ? 16 : 0;
      copy_async_16_or_zeros(to, from, there);
      copy_async_16_or_zeros(to + kColumnBlocks / 2 * kBlockBytes, from + Config::kHeadDim, there);
    }
  }
}

// The producer: keys of all tiles of all tokens, and the queries behind the first tile, whose slot is free earlier.
__device__ __forceinline__ void produce(const Launch& launch, const Shared& shared, int warp, int lane) {
  const int row_of_lane = warp * kProducerRows + lane % kProducerRows;
  const Ring<1> queries = shared.queries();
  const Ring<2> tiles = shared.tiles();
  RingPosition<2> tile;
  RingPosition<1> query;
  const auto bring_queries = [&](int token) {
    const bf16* from = launch.q + launch.row(token) + row_of_lane * Config::kHeadDim;
    barrier_wait(queries.free(0), query.parity ^ 1);
    fetch_rows(smem_address(shared.at), row_of_lane < launch.n_heads ? from : nullptr, warp, lane);
    barrier_arrive_after_copies(queries.full(0));
    query.advance();
    // Those of the next token need not come from memory then.
    const int next = token + gridDim.x;
    if (warp == 0 && lane == 0 && next < launch.n_tokens) {
      prefetch_bulk(launch.q + launch.row(next), launch.n_heads * Config::kHeadDim * 2);
    }
  };
  const int first = blockIdx.x;
  if (first < launch.n_tokens) bring_queries(first);
  for (int token = first; token < launch.n_tokens; token += gridDim.x) {
    const Keys<Config> keys = launch.keys_of(token);
    const int n_keys = keys.attended.n_keys;
    const bf16* key = keys.at(row_of_lane);
    for (int first_key = 0; first_key < n_keys; first_key += Config::kKeyTile) {
      barrier_wait(tiles.free(tile.slot), tile.parity ^ 1);
      fetch_rows(shared.keys(tile.slot), key, warp, lane);
      barrier_arrive_after_copies(tiles.full(tile.slot));
      tile.advance();
      if (first_key == 0 && token != first) bring_queries(token);
      key = keys.at(first_key + Config::kKeyTile + row_of_lane);  // nothing behind the last tile
    }
  }
  commit_copies();
  wait_copies<0>();
}

// The two groups of consumers: 0 has the scores and the left columns, 1 the right ones. `warp` counts through both.
template <int kGroup>
struct Consumer {
  const Launch& launch;
  const Shared& shared;
  int warp;
  int lane;
  RingPosition<2> tile = {};
  RingPosition<1> query = {};
  Values<kGroup> values = {};
  Softmax softmax = {};  // of group 0

  __device__ __forceinline__ int place() const { return warp % 4 * 32 + lane; }  // the thread within its group
  __device__ __forceinline__ int head() const { return warp % 4 * 16 + lane / 4; }

  // Waits for a token's queries, and makes of this warp's what S takes.
  __device__ __forceinline__ void prepare_queries(const float2* turns) {
    const HeadTurns<Config> head_turns(turns, lane);
    barrier_wait(shared.queries().full(0), query.parity);
    query.advance();
    normalise_heads<Config, Place, 4>(shared.at, head_turns, warp, lane);
    fence_async_proxy();
    if constexpr (kGroup == 0) {
      join_threads(kNormalised, kConsumerThreads);
    } else {
      arrive_at(kNormalised, kConsumerThreads);
    }
  }

  // P of the tile, and the first half of its products.
  __device__ __forceinline__ void score(Probabilities& p, int n_left) {
    float s[4 * kKeyTiles];
    multiply_queries(s, smem_address(shared.at), shared.keys(tile.slot));
    if (n_left <= Config::kKeyTile && lane == 0) barrier_arrive(shared.queries().free(0));
    softmax.follow(p.factors, s, n_left, lane);
    values.rescale(p.factors);
    softmax.exponentiate<0>(p, s);
    p.hand_over<0>(shared.handed(tile.slot), place());
    values.template start<0>(p, shared.keys(tile.slot));
    // The branch also keeps the compiler from finding all probabilities first: here products are under way.
    if (n_left > Config::kKeyTile / 2) {
      softmax.exponentiate<1>(p, s);
    } else {
      p.clear<1>();
    }
    p.hand_over<1>(shared.handed(tile.slot), place());
  }

  // The tile in which `n_left` keys and more are left.
  __device__ __forceinline__ void add_tile(int n_left) {
    const int handed = kHanded + tile.slot * 4 + warp % 4;
    const uint32_t keys = shared.keys(tile.slot);
    Probabilities p;
    barrier_wait(shared.tiles().full(tile.slot), tile.parity);
    fence_async_proxy();
    if constexpr (kGroup == 0) {
      score(p, n_left);
      arrive_at(handed, 64);
    } else {
      join_threads(handed, 64);
      p.take(shared.handed(tile.slot), place());
      values.rescale(p.factors);
      values.template start<0>(p, keys);
    }
    values.template start<1>(p, keys);
    values.wait();
    if (lane == 0) barrier_arrive(shared.tiles().free(tile.slot));
    tile.advance();
  }

  // What the sums of values are divided by, inverted.
  __device__ __forceinline__ float2 share_inverses(const float (&sinks)[2]) const {
    if constexpr (kGroup == 0) {
      const float2 inverses = make_float2(softmax.inverse(0, sinks[0]), softmax.inverse(1, sinks[1]));
      shared.inverses()[place()] = inverses;
      arrive_at(kSummed + warp % 4, 64);
      return inverses;
    } else {
      join_threads(kSummed + warp % 4, 64);
      return shared.inverses()[place()];
    }
  }

  __device__ __forceinline__ void run() {
    float sinks[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (kGroup == 0 && head() + r * 8 < launch.n_heads) sinks[r] = launch.sinks[launch.first_head + head() + r * 8];
    }
    const int first = blockIdx.x;
    int next_position = first < launch.n_tokens ? launch.positions[first] : 0;
    for (int token = first; token < launch.n_tokens; token += gridDim.x) {
      const int position = next_position;
      const int next = token + gridDim.x;
      if (next < launch.n_tokens) next_position = launch.positions[next];
      const float2* turns = launch.rope + int64_t{position} * (Config::kRopeDim / 2);
      prepare_queries(turns);
      values = {};
      softmax = {};
      for (int n_left = Attended<Config>(position).n_keys; n_left > 0; n_left -= Config::kKeyTile) add_tile(n_left);
      const float2 inverses = share_inverses(sinks);
      values.store(launch.o + launch.row(token), inverses, turns, launch.n_heads, head(), lane);
    }
  }
};

extern "C" __global__ void __launch_bounds__(kConsumerThreads + kProducerWarps * 32, 1)
    attend_wgmma(const bf16* q, const bf16* kv_step, const bf16* kv_ring, const bf16* pool, const int* table,
           const int* picks, const float* sinks, const float2* rope, const int* positions, const int* sequences,
           const int* step_start, const int* first_row, bf16* o, float* workspace, const int* m_on_device, int m,
           int max_pages, float* mix) {
  extern __shared__ __align__(1024) uint8_t bytes[];
  launch_dependents();
  const Shared shared{bytes};
  if (threadIdx.x == 0) {
    shared.tiles().init(kProducerWarps * 32, Shape::kWarps);
    shared.queries().init(kProducerWarps * 32, 4);
  }
  __syncthreads();
  wait_for_dependency();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int first_head = blockIdx.y * Config::kHeadTile;
  const Launch launch{q, kv_step, kv_ring, pool, table, picks, sinks, rope, positions, sequences, step_start, first_row,
                      o, max_pages, actual_tokens(m_on_device, m), first_head,
                      smaller(Config::kHeadTile, Config::kHeads - first_head)};
  if (warp >= Shape::kWarps) {
    give_registers<kProducerRegisters>();
    produce(launch, shared, warp - Shape::kWarps, lane);
    return;
  }
  take_registers<kConsumerRegisters>();
  if (warp < 4) {
    Consumer<0>{launch, shared, warp, lane}.run();
  } else {
    Consumer<1>{launch, shared, warp, lane}.run();
  }
}
