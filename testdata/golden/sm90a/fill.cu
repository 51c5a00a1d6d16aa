#line 4 "templates/fill/kernel.cu"
// Generated from templates/fill for sm90a. Do not edit.
//
// fill: random test data, the same for one seed on every GPU. Never zero where zeros would hide an error.
//
//   kind   in memory         values
//   0      byte              every value: e2m1 codes
//   1      byte              e4m3 codes of magnitude 2^-5 to 15, both signs
//   2      byte              low to high, inclusive: block scales
//   3      BF16              uniform in (-1, 1), never zero
//   4      byte              the constant `low`: poison
//
//   block = 256 threads, grid-stride over the elements; no shared memory, no barriers
//
// After: the mixing function is splitmix64 (Steele, Lea, Flood 2014).
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
#line 19 "templates/fill/kernel.cu"
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
#line 20 "templates/fill/kernel.cu"

__device__ __forceinline__ uint64_t mixed(uint64_t seed, uint64_t idx) {
  uint64_t z = seed + (idx + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

extern "C" __global__ void __launch_bounds__(256)
    fill(uint8_t* out, int64_t count, int kind, int low, int high, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const uint64_t bits = mixed(seed, i);
    if (kind == 0) {
      out[i] = bits;
    } else if (kind == 1) {
      out[i] = (bits & 0x80) | (0x10 + (bits >> 8) % 0x48);
    } else if (kind == 2) {
      out[i] = low + (bits >> 8) % (high - low + 1);
    } else if (kind == 3) {
      const float value = (static_cast<float>(bits >> 40) + 0.5f) / 8388608.0f - 1.0f;
      reinterpret_cast<bf16*>(out)[i] = bf16_from_float(value);
    } else {
      out[i] = low;
    }
  }
}
