#line 4 "templates/reference_fp8/kernel.cu"
// Generated from templates/reference_fp8 for sm90a. Do not edit.
//
// reference_fp8: what FP8 keeps of rows of BF16, for the reference of what converts its tokens on the way.
//   scale[row] = max(amax of the row, 1e-30) / 448, T[row, i] = the E4M3 value nearest to V[row, i] / scale[row]
//
//   operand    shape              in memory           written / read
//   values     [rows, columns]    BF16                read twice; finite
//   rounded    [rows, columns]    BF16                written: an E4M3 value needs four of its bits
//   scales     [rows]             f32                 written
//
//   block = 256 threads, one row after the other; shared memory: a maximum a thread
//
// Bits: the two divisions are those of src/quant/fp8.rs, in f32. Rounding is arithmetic on the value, in f64; it shares
// no code with templates/quantise, and leaves k in its own order.
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
#line 19 "templates/reference_fp8/kernel.cu"
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
#line 20 "templates/reference_fp8/kernel.cu"

// Nearest E4M3 value, ties to the even mantissa, at most 448.
__device__ __forceinline__ double nearest_e4m3(double x) {
  const double magnitude = fmin(fabs(x), 448.0);
  const int exponent = magnitude < 0.015625 ? -6 : ilogb(magnitude);
  const double step = ldexp(1.0, exponent - 3);
  return copysign(fmin(rint(magnitude / step) * step, 448.0), x);
}

extern "C" __global__ void __launch_bounds__(256)
    reference_fp8(const bf16* values, bf16* rounded, float* scales, int rows, int columns) {
  __shared__ float largest[256];
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const bf16* from = values + int64_t{row} * columns;
    float amax = 0.0f;
    for (int i = threadIdx.x; i < columns; i += 256) amax = fmaxf(amax, fabsf(float_of(from[i])));
    largest[threadIdx.x] = amax;
    __syncthreads();
    for (int other = 0; other < 256; ++other) amax = fmaxf(amax, largest[other]);
    const float scale = fmaxf(amax, 1e-30f) / 448.0f;
    if (threadIdx.x == 0) scales[row] = scale;
    for (int i = threadIdx.x; i < columns; i += 256) {
      rounded[int64_t{row} * columns + i] = bf16_from_float(float(nearest_e4m3(float_of(from[i]) / scale)));
    }
    __syncthreads();
  }
}
