$#-
  arch: templates/arch/   (shapes and strides are run-time arguments)
-#$
// Generated from templates/compare for ${ arch.name }$. Do not edit.
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
#include "lib/words.cuh"
#include "arch/bf16.cuh"

using Out = ${ problem.out }$;

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
