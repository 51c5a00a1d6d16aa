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
