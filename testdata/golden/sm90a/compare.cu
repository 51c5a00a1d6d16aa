#line 4 "templates/compare/kernel.cu"
// Generated from templates/compare for sm90a. Do not edit.
//
// compare: how far D is from the reference R, over every element.
//
//   operand   shape           in memory              written / read
//   D         [m, ldd]        BF16 or f32            read
//   R         [m, ldr]        f32                    read
//   report    [blocks][6]     f64                    written: sums of (D - R)^2, R^2 and (bf16(R) - R)^2, largest
//                                                    |D - R| beyond `slope * |R|`, elements not finite, checksum
//
//   block = 256 threads, grid-stride over the elements; shared memory 256 doubles; one barrier a step of the reduction
//
// The checksum adds a hash of each element's bits and place: equal for two runs with equal bits, whatever the order.
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
#line 18 "templates/compare/kernel.cu"
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
#line 19 "templates/compare/kernel.cu"

using Out = bf16;

__device__ __forceinline__ float value_of(bf16 value) { return float_of(value); }
__device__ __forceinline__ float value_of(float value) { return value; }
__device__ __forceinline__ uint64_t bits_of(bf16 value) { return value; }
__device__ __forceinline__ uint64_t bits_of(float value) { return __float_as_uint(value); }

extern "C" __global__ void __launch_bounds__(256)
    compare(const Out* d, const float* r, double* report, int64_t ldd, int64_t ldr, int m, int columns, double slope) {
  __shared__ double parts[256];
  double error = 0.0, size = 0.0, rounding = 0.0, worst = 0.0, bad = 0.0;
  uint64_t checksum = 0;
  const int64_t count = int64_t{m} * columns;
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const int64_t row = i / columns, column = i % columns;
    const Out element = d[row * ldd + column];
    const double value = value_of(element), truth = r[row * ldr + column];
    const double rounded = float_of(bf16_from_float(r[row * ldr + column]));
    const double off = value - truth;
    checksum += (bits_of(element) + 1) * (2 * i + 1) * 0x9E3779B97F4A7C15ull;
    size += truth * truth;
    rounding += (rounded - truth) * (rounded - truth);
    if (isfinite(value)) {
      error += off * off;
      worst = fmax(worst, fabs(off) - slope * fabs(truth));
    } else {
      bad += 1.0;
    }
  }
  const double mine[6] = {error, size, rounding, worst, bad, __longlong_as_double(static_cast<int64_t>(checksum))};
  for (int which = 0; which < 6; ++which) {
    parts[threadIdx.x] = mine[which];
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
      if (threadIdx.x < half) {
        const double other = parts[threadIdx.x + half];
        double& own = parts[threadIdx.x];
        if (which == 3) {
          own = fmax(own, other);
        } else if (which == 5) {
          own = __longlong_as_double(__double_as_longlong(own) + __double_as_longlong(other));
        } else {
          own += other;
        }
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) report[blockIdx.x * 6 + which] = parts[0];
    __syncthreads();
  }
}
