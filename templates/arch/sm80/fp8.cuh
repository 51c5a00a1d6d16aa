// FP8 conversion with one rounding, in integers: these chips have no instruction for it.

// Nearest E4M3, ties to even, saturating at 448; `x` is finite.
__device__ __forceinline__ uint32_t e4m3_from_float(float x) {
  const uint32_t sign = __float_as_uint(x) >> 24 & 0x80u;
  const float magnitude = fminf(fabsf(x), 448.0f);
  if (magnitude < 0.015625f) return sign | static_cast<uint32_t>(rintf(magnitude * 512.0f));
  const uint32_t bits = __float_as_uint(magnitude);
  return sign | ((bits + 0x7FFFFu + (bits >> 20 & 1u) - 0x3C000000u) >> 20);
}

// Two floats to two E4M3 codes, `low` in the low byte.
__device__ __forceinline__ uint32_t e4m3_pair_from_floats(float low, float high) {
  return e4m3_from_float(low) | e4m3_from_float(high) << 8;
}
