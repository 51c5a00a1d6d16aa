#line 4 "templates/reference_moe/kernel.cu"
// Generated from templates/reference_moe for sm90a. Do not edit.
//
// reference_moe: the two steps of a block of experts that are no products, in f64.
//   step 0   V = silu(min(S[row, i], limit)) * clamp(S[row, columns + i], -limit, limit), S = sums of gate and up;
//            H[row, i] = bf16(V), R[row, i] = V, whichever is not null
//   step 1   R[t, i] = sum over the slots s of token t, ascending, of weight[slot] * P[row of slot, i], as f32
//
//   operand    shape                   in memory            written / read
//   sums       [rows, 2 * columns]     f32                  read (step 0); [slots, columns] products (step 1)
//   row_of     [m * top_k]             int32, -1: skipped   read (step 1): where the slot's product stands
//   weight     [m * top_k]             f32                  read (step 1)
//   hidden     [rows, columns]         BF16                 written (step 0)
//   result     [rows, columns]         f32                  written
//
//   block = 256 threads, grid-stride over the elements; no shared memory, no barriers
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
#line 20 "templates/reference_moe/kernel.cu"
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
#line 21 "templates/reference_moe/kernel.cu"

extern "C" __global__ void __launch_bounds__(256)
    reference_moe(int step, const float* sums, const int* row_of, const float* weight, bf16* hidden, float* result,
                  int rows, int columns, int top_k, double limit) {
  const int64_t count = int64_t{rows} * columns;
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const int64_t row = i / columns;
    const int column = i % columns;
    if (step == 0) {
      double gate = sums[row * 2 * columns + column];
      double up = sums[row * 2 * columns + columns + column];
      gate = gate > limit ? limit : gate;
      up = up > limit ? limit : up < -limit ? -limit : up;
      const float value = static_cast<float>(gate / (1.0 + exp(-gate)) * up);
      if (hidden != nullptr) hidden[i] = bf16_from_float(value);
      if (result != nullptr) result[i] = value;
    } else {
      double sum = 0.0;
      for (int s = 0; s < top_k; ++s) {
        const int from = row_of[row * top_k + s];
        if (from >= 0) sum += double(weight[row * top_k + s]) * sums[int64_t{from} * columns + column];
      }
      result[i] = static_cast<float>(sum);
    }
  }
}
