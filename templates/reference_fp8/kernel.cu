$#-
  arch: templates/arch/   (shapes are run-time arguments)
-#$
// Generated from templates/reference_fp8 for ${ arch.name }$. Do not edit.
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
#include "lib/words.cuh"
#include "arch/bf16.cuh"

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
