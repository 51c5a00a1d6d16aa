#line 4 "templates/attend/kernel.cu"
// Generated from templates/attend for sm90a. Do not edit.
//
// attend: O[t, h, :] = rotated back(sum_j p_j * K_j) with p = softmax_j(Q . K_j / sqrt(head_dim)) and a sink in its
// denominator; Q is q[t, h] over its root mean square, its end rotated, in BF16; K are the keys of token t: its window,
// then its compressed entries. A key is its own value.
//
//   operand     shape                        in memory                         written / read
//   q           [m, heads, head_dim]         BF16, before norm and rotation    read once by each split
//   kv_step     [m, head_dim]                BF16, keys of this step           gathered by rows
//   kv_ring     [slots, window, head_dim]    BF16, position p in p % window    gathered by rows
//   pool        [pages, 64, head_dim]        BF16, compressed entries          gathered by rows
//   table       [slots, max_pages]           int32, pages of entry w / 64      read for each key
//   picks       [m, top_k]                   int32, entries of a list          read for each key
//   sinks       [heads]                      f32                               read at the end
//   rope        [positions, rope_dim / 2]    f32 pairs (cos, sin)              read first and at the end
//   positions, sequences    [m]              int32, of each token              read first, before the wait: kAsksEarly
//   step_start, first_row   [slots]          int32, position and row of the first token of a sequence in the step
//   o           [m, heads, head_dim]         BF16                              written (one split)
//   workspace   [splits, m, heads, head_dim] f32 sums, then (maximum, sum)     written (several splits)
//   mix         [m, 20]                      f32, post[4] C[4][4]              C balanced in place (kBalances)
//
//   block = 8 warps, one token, kHeadTile heads, a range of key tiles; grid = (tokens, head tiles, splits)
//
// With kBalances one more layer of blocks finishes the mixing matrices that templates/hc_pre has left: they are used
// behind the sublayer, and a short step has SMs to spare here.
//
//   keys    | gather tile i + 1 (cp.async) ......................................... |
//   block   | first Q from q | S = Q K' | maxima | P = 2^(S - max), sums | rescale, O += P K |
//
//   shared memory   Q, two tiles of K, P, for each head the maxima and sums of parts of a tile, a factor, a maximum
//   barriers        tile has arrived; maxima written; P and factors written
//
// For S a warp has 16 heads and some keys of the tile over all columns, for O all heads and its own columns.
// Exactness: f32 sums, P rounded to BF16, one rounding of O. The order of every sum follows from the position and the
// splits: neither the batch nor kHeadTile changes a bit. NaN in a query or key reaches O.
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
#line 40 "templates/attend/kernel.cu"
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
#line 41 "templates/attend/kernel.cu"
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
#line 42 "templates/attend/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 43 "templates/attend/kernel.cu"
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
#line 44 "templates/attend/kernel.cu"
#line 1 "templates/arch/sm80/matrix_transposed.cuh"
// ldmatrix with a transposition on the way: columns of what is stored by rows.

// ldmatrix.x4.trans: four 8x8 matrices of 16-bit values, each transposed; lane i gives the address of row i % 8 of
// matrix i / 8.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&to)[4], uint32_t smem_from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(smem_from)
               : "memory");
}
#line 45 "templates/attend/kernel.cu"
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
#line 46 "templates/attend/kernel.cu"
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
#line 47 "templates/attend/kernel.cu"
#line 1 "templates/arch/sm80/reciprocal.cuh"
// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
#line 48 "templates/attend/kernel.cu"
#line 1 "templates/lib/reciprocal.cuh"
// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
#line 49 "templates/attend/kernel.cu"
#line 1 "templates/lib/sinkhorn.cuh"
// Mixing matrices: rows and columns brought to a sum of 1 in turn.
//
// Sinkhorn keeps C as K[j][k] / (U[j] * V[k]) and changes U and V in turn: U'[j] = sum_k K[j][k] / V[k] + eps * U[j].
// Its 2 * kRounds steps depend on each other and are what a short step waits for: in each four sums and four
// reciprocals run side by side without a branch, in every lane, since shuffles would take as long as reciprocals.

__device__ __forceinline__ void unpack(float (&to)[4], float4 from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}

// epsilon * before + sum over i of k[i] * other[i].
template <class Config>
__device__ __forceinline__ float half_step(float before, float k0, float k1, float k2, float k3,
                                           const float (&other)[4]) {
  const float even = __fmaf_rn(k2, other[2], __fmaf_rn(k0, other[0], Config::kHcEpsilon * before));
  const float odd = __fmaf_rn(k3, other[3], k1 * other[1]);
  return even + odd;
}

// K after Sinkhorn, in place.
template <class Config>
__device__ __forceinline__ void balance(float (&k)[4][4]) {
  float row_sum[4] = {1.0f, 1.0f, 1.0f, 1.0f}, column_sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  float row_factor[4] = {1.0f, 1.0f, 1.0f, 1.0f}, column_factor[4];
  const auto divide_columns = [&] {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      column_sum[i] = half_step<Config>(column_sum[i], k[0][i], k[1][i], k[2][i], k[3][i], row_factor);
      column_factor[i] = reciprocal_in_range(column_sum[i]);
    }
  };
  divide_columns();
#pragma unroll 1
  for (int round = 1; round < Config::kRounds; ++round) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      row_sum[j] = half_step<Config>(row_sum[j], k[j][0], k[j][1], k[j][2], k[j][3], column_factor);
      row_factor[j] = reciprocal_in_range(row_sum[j]);
    }
    divide_columns();
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) k[j][i] = row_factor[j] * k[j][i] * column_factor[i];
  }
}

// What hc_pre has left to others: the matrix of one token behind its post[4], in place. Called by whole warps, all of
// which do the same; thread 0 writes.
template <class Config>
__device__ __forceinline__ void balance_mix(float* mix) {
  float4* rows = reinterpret_cast<float4*>(mix) + 1;
  float k[4][4];
#pragma unroll
  for (int j = 0; j < 4; ++j) unpack(k[j], rows[j]);
  balance<Config>(k);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int j = 0; j < 4; ++j) rows[j] = make_float4(k[j][0], k[j][1], k[j][2], k[j][3]);
}
#line 50 "templates/attend/kernel.cu"
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
#line 51 "templates/attend/kernel.cu"
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
#line 52 "templates/attend/kernel.cu"
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
#line 53 "templates/attend/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 54 "templates/attend/kernel.cu"
#line 1 "templates/lib/step_arrays.cuh"
// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. The host writes them
// while its stream is idle, and templates/advance ends a step: behind it stands no launch of the same graph, and the
// host waits before it launches another step in a row. So a kernel of a step may ask for them before it waits for the
// launch ahead, and behind its wait one way to memory is left where there were two or three. (Two steps in one graph
// would need a full edge between them; that advance lets nobody start early is a second lock, not the first.)
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
#line 55 "templates/attend/kernel.cu"
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
#line 56 "templates/attend/kernel.cu"
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
#line 57 "templates/attend/kernel.cu"
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
#line 58 "templates/attend/kernel.cu"
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
#line 59 "templates/attend/kernel.cu"

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
  static constexpr int kHeadTile = 16;        // heads of a block
  static constexpr int kKeyTile = 64;          // keys fetched together
  static constexpr bool kIsPartial = true;     // several splits
  static constexpr bool kBalances = false;
  static constexpr int kRounds = 1;             // of the balance
  static constexpr float kHcEpsilon = 0.0f;
  static constexpr int kSmemBytes = 150720;
};

using Shape = AttentionBlock<Config>;
constexpr int kPieces = Shape::kPieces;
constexpr int kHeadWarps = Shape::kHeadWarps;
// A step of many tokens, whose blocks have more heads, has neither the registers nor the need to ask for the place of a
// token before the wait.
constexpr bool kAsksEarly = Config::kHeadTile == 16;
constexpr int kColumnTiles = Config::kHeadDim / 8 / Shape::kWarps;  // 8-column tiles of a warp, for O
static_assert(Config::kHeadDim % 64 == 0 && Config::kHeadTile % 16 == 0 && Config::kRopeDim % 2 == 0, "whole tiles");
static_assert(Shape::kBytes == Config::kSmemBytes, "host and device disagree on shared memory");

// Rows of queries and keys one after the other.
struct Place {
  __device__ __forceinline__ static uint32_t address(uint32_t base, int row, int piece) {
    return piece_address<kPieces>(base, row, piece);
  }
};

// S of 16 heads and a warp's keys of a tile. Every other 16 columns have sums of their own: with few keys a warp has
// one chain of products, and each would wait for the one before.
__device__ __forceinline__ void multiply(Scores<Config>& scores, uint32_t queries, uint32_t keys, int head_warp,
                                         int key_warp, int lane) {
  float(&s)[Shape::kKeyTiles][4] = scores.s;
  float odd[Shape::kKeyTiles][4];
#pragma unroll
  for (int t = 0; t < Shape::kKeyTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[t][i] = odd[t][i] = 0.0f;
  }
#pragma unroll 4
  for (int piece = 0; piece < kPieces; piece += 4) {
    // 32 columns at a time: one load brings the keys' operands of two products.
    uint32_t q[2][4];
    const int head = head_warp * 16 + lane % 16;
    load_matrix_x4(q[0], piece_address<kPieces>(queries, head, piece + lane / 16));
    load_matrix_x4(q[1], piece_address<kPieces>(queries, head, piece + 2 + lane / 16));
#pragma unroll
    for (int t = 0; t < Shape::kKeyTiles; ++t) {
      uint32_t k[4];
      const int key = (key_warp * Shape::kKeyTiles + t) * 8 + lane % 8;
      load_matrix_x4(k, piece_address<kPieces>(keys, key, piece + lane / 8));
      multiply_add(s[t], q[0], k[0], k[1]);
      multiply_add(odd[t], q[1], k[2], k[3]);
    }
  }
#pragma unroll
  for (int t = 0; t < Shape::kKeyTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[t][i] += odd[t][i];
  }
}

// Sums of values: all heads of the block, a warp's own columns.
struct Values {
  float o[kHeadWarps][kColumnTiles][4];

  __device__ __forceinline__ void rescale(const float* factors, int lane) {
#pragma unroll
    for (int h = 0; h < kHeadWarps; ++h) {
      const float upper = factors[h * 16 + lane / 4];
      const float lower = factors[h * 16 + 8 + lane / 4];
      // Maxima settle after a few tiles, and a factor of 1 changes nothing.
      if (!__any_sync(0xFFFFFFFFu, upper != 1.0f || lower != 1.0f)) continue;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        o[h][n][0] *= upper;
        o[h][n][1] *= upper;
        o[h][n][2] *= lower;
        o[h][n][3] *= lower;
      }
    }
  }

  __device__ __forceinline__ void multiply(uint32_t probabilities, uint32_t keys, int warp, int lane) {
#pragma unroll
    for (int step = 0; step < Config::kKeyTile / 32; ++step) {
      // P of 32 keys for all heads stays in registers, so that each value is read once.
      uint32_t p[kHeadWarps][2][4];
#pragma unroll
      for (int h = 0; h < kHeadWarps; ++h) {
        const int head = h * 16 + lane % 16;
        load_matrix_x4(p[h][0], piece_address<Shape::kKeyPieces>(probabilities, head, step * 4 + lane / 16));
        load_matrix_x4(p[h][1], piece_address<Shape::kKeyPieces>(probabilities, head, step * 4 + 2 + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        uint32_t v[4];
        load_matrix_x4_transposed(v, piece_address<kPieces>(keys, step * 32 + lane, warp * kColumnTiles + n));
#pragma unroll
        for (int h = 0; h < kHeadWarps; ++h) {
          multiply_add(o[h][n], p[h][0], v[0], v[1]);
          multiply_add(o[h][n], p[h][1], v[2], v[3]);
        }
      }
    }
  }

  // One row of BF16 for each head, divided by the denominators and rotated back.
  __device__ __forceinline__ void store(bf16* to, const float* inverses, const float2* turns, int n_heads, int warp,
                                        int lane) const {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int column = (warp * kColumnTiles + n) * 8 + lane % 4 * 2;
      const int rotated = column - (Config::kHeadDim - Config::kRopeDim);
      const float2 turn = rotated >= 0 ? turns[rotated / 2] : make_float2(1.0f, 0.0f);
#pragma unroll
      for (int r = 0; r < 2 * kHeadWarps; ++r) {
        const int head = r * 8 + lane / 4;
        if (head >= n_heads) continue;
        float2 pair = make_float2(o[r / 2][n][r % 2 * 2] * inverses[head], o[r / 2][n][r % 2 * 2 + 1] * inverses[head]);
        if (rotated >= 0) pair = rotated_back(pair, turn);
        *reinterpret_cast<uint32_t*>(to + head * Config::kHeadDim + column) = pair_from_floats(pair.x, pair.y);
      }
    }
  }

  // The sums as they are, for attend_combine.
  __device__ __forceinline__ void store_partial(float* to, int n_heads, int warp, int lane) const {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const int column = (warp * kColumnTiles + n) * 8 + lane % 4 * 2;
#pragma unroll
      for (int r = 0; r < 2 * kHeadWarps; ++r) {
        const int head = r * 8 + lane / 4;
        if (head >= n_heads) continue;
        const float* pair = &o[r / 2][n][r % 2 * 2];
        *reinterpret_cast<float2*>(to + head * Config::kHeadDim + column) = make_float2(pair[0], pair[1]);
      }
    }
  }
};

// What a block has summed over its range of tiles.
struct Block {
  Values values = {};
  Scores<Config> scores;
  float sum = 0.0f;  // of probabilities, in thread h for head h
  const float2* turns;  // of the token's position

  __device__ __forceinline__ void run(uint8_t* shared, const Keys<Config>& keys, TileRange range,
                                      const HeadTurns<Config>& early_turns, int warp, int lane) {
    const uint32_t smem = smem_address(shared);
    const int head_warp = warp % kHeadWarps;
    const int key_warp = warp / kHeadWarps;
    scores.running[0] = scores.running[1] = -__int_as_float(0x7F800000);
    // Of a short range nothing is looked up beyond its end: it would be one more wait.
    const auto key_of = [&](int tile) {
      const int key = tile * Config::kKeyTile + warp * Shape::kFetched + lane % Shape::kFetched;
      return tile < range.end ? keys.at(key) : nullptr;
    };
    fetch_keys<Config, Place>(smem + Shape::kKeysAt, key_of(range.begin), warp, lane);
    commit_copies();
    // Addresses take two dependent loads: they are looked up a tile ahead of their copies.
    const bf16* next = key_of(range.begin + 1);
    wait_copies<1>();  // the queries have arrived, the keys may be on their way
    if constexpr (kAsksEarly) {
      normalise_heads<Config, Place, 2>(shared, early_turns, warp, lane);
    } else {
      normalise_queries<Config, Place>(shared, turns, warp, lane);
    }
    for (int tile = range.begin; tile < range.end; ++tile) {
      const int buffer = (tile - range.begin) & 1;
      const uint32_t tile_keys = smem + Shape::kKeysAt + buffer * Shape::kTileBytes;
      // The copies of this tile were started while the one before was multiplied.
      wait_copies<0>();
      __syncthreads();  // the tile has arrived, and nobody reads the other one or P any more
      if (tile + 1 < range.end) {
        fetch_keys<Config, Place>(smem + Shape::kKeysAt + (buffer ^ 1) * Shape::kTileBytes, next, warp, lane);
        next = key_of(tile + 2);
      }
      commit_copies();
      if (key_warp < Shape::kKeyWarps) {
        multiply(scores, smem, tile_keys, head_warp, key_warp, lane);
        const int n_left = keys.attended.n_keys - tile * Config::kKeyTile;
        scores.scale(reinterpret_cast<float*>(shared + Shape::kMaximaAt), n_left, head_warp, key_warp, lane);
      }
      __syncthreads();  // maxima are written
      if (key_warp < Shape::kKeyWarps) scores.exponentiate(shared, head_warp, key_warp, lane);
      __syncthreads();  // P, sums and factors are written
      const float* factors = reinterpret_cast<const float*>(shared + Shape::kFactorsAt);
      if (threadIdx.x < Config::kHeadTile) sum = with_tile<Config>(sum, shared, threadIdx.x);
      values.rescale(factors, lane);
      values.multiply(smem + Shape::kProbabilitiesAt, tile_keys, warp, lane);
    }
    if (key_warp == 0 && lane % 4 == 0) {
      float* running = reinterpret_cast<float*>(shared + Shape::kRunningAt);
      running[head_warp * 16 + lane / 4] = scores.running[0];
      running[head_warp * 16 + 8 + lane / 4] = scores.running[1];
    }
    __syncthreads();  // maxima are written, factors are read
  }
};

extern "C" __global__ void __launch_bounds__(Shape::kWarps * 32, 1)
    attend(const bf16* q, const bf16* kv_step, const bf16* kv_ring, const bf16* pool, const int* table,
           const int* picks, const float* sinks, const float2* rope, const int* positions, const int* sequences,
           const int* step_start, const int* first_row, bf16* o, float* workspace, const int* m_on_device, int m,
           int max_pages, float* mix) {
  extern __shared__ __align__(128) uint8_t shared[];
  launch_dependents();
  const int token = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if constexpr (!kAsksEarly) wait_for_dependency();
  const bool is_there = token < actual_tokens(m_on_device, m);
  // A row that is no token has any number there, which must not become an address.
  const int position = !kAsksEarly ? positions[token] : is_there ? of_step(positions, token) : 0;
  const int slot = !kAsksEarly ? sequences[token] : is_there ? of_step(sequences, token) : 0;
  const int row_of_start = kAsksEarly ? of_step(first_row, slot) : 0;
  const int start = kAsksEarly ? of_step(step_start, slot) : 0;
  const float2* turns = rope + int64_t{position} * (Config::kRopeDim / 2);
  const HeadTurns<Config> early_turns(kAsksEarly ? turns : rope, lane);
  if constexpr (kAsksEarly) wait_for_dependency();
  if (!is_there) return;
  const int splits = gridDim.z - (Config::kBalances ? 1 : 0);
  if (Config::kBalances && blockIdx.z == splits) {
    if (blockIdx.y == 0 && warp == 0) balance_mix<Config>(mix + int64_t{token} * 20);
    return;
  }
  const Attended<Config> attended(position);
  const TileRange range = attended.range(blockIdx.z, splits);
  if (range.begin == range.end) return;  // attend_combine knows
  const Keys<Config> keys{attended,
                  kv_step + int64_t{kAsksEarly ? row_of_start : first_row[slot]} * Config::kHeadDim,
                  kv_ring + int64_t{slot} * Config::kWindow * Config::kHeadDim,
                  pool,
                  table + int64_t{slot} * max_pages,
                  picks + int64_t{token} * Config::kTopK,
                  kAsksEarly ? start : step_start[slot]};
  const int first_head = blockIdx.y * Config::kHeadTile;
  const int n_heads = smaller(Config::kHeadTile, Config::kHeads - first_head);
  const int64_t row = int64_t{token} * Config::kHeads + first_head;
  fetch_queries<Config, Place>(smem_address(shared), q + row * Config::kHeadDim, first_head, warp, lane);
  commit_copies();
  Block block;
  block.turns = turns;
  block.run(shared, keys, range, early_turns, warp, lane);
  const float* running = reinterpret_cast<const float*>(shared + Shape::kRunningAt);
  if constexpr (Config::kIsPartial) {
    const int64_t rows = int64_t{m} * Config::kHeads;
    const int64_t of_split = blockIdx.z * rows + row;
    block.values.store_partial(workspace + of_split * Config::kHeadDim, n_heads, warp, lane);
    if (threadIdx.x < n_heads) {
      float2* statistics = reinterpret_cast<float2*>(workspace + splits * rows * Config::kHeadDim);
      statistics[of_split + threadIdx.x] = make_float2(running[threadIdx.x], block.sum);
    }
  } else {
    float* inverses = reinterpret_cast<float*>(shared + Shape::kFactorsAt);
    if (threadIdx.x < n_heads) {
      inverses[threadIdx.x] = inverse_of(block.sum, sinks[first_head + threadIdx.x], running[threadIdx.x]);
    }
    __syncthreads();
    block.values.store(o + row * Config::kHeadDim, inverses, turns, n_heads, warp, lane);
  }
}
