// Values rounded to E4M3, E2M1 and NVFP4 and kept as f32, bit for bit what src/quant makes of them. What is not finite
// takes no part in an amax.

// Nearest E4M3, ties to even, saturating at 448; `x` is finite.
__device__ __forceinline__ float nearest_e4m3(float x) {
  const float magnitude = fminf(fabsf(x), 448.0f);
  float value;
  if (magnitude < 0.015625f) {
    value = rintf(magnitude * 512.0f) * 0.001953125f;
  } else {
    // Three bits of mantissa stay: half of the last one, less one bit where a tie goes down to even.
    const uint32_t bits = __float_as_uint(magnitude);
    value = __uint_as_float((bits + 0x7FFFFu + (bits >> 20 & 1u)) & 0xFFF00000u);
  }
  return copysignf(value, x);
}

// Nearest E2M1, ties to the even code, saturating at 6; `x` is finite.
__device__ __forceinline__ float nearest_e2m1(float x) {
  const float magnitude = fabsf(x);
  const float value = magnitude <= 0.25f   ? 0.0f
                      : magnitude < 0.75f  ? 0.5f
                      : magnitude <= 1.25f ? 1.0f
                      : magnitude < 1.75f  ? 1.5f
                      : magnitude <= 2.5f  ? 2.0f
                      : magnitude < 3.5f   ? 3.0f
                      : magnitude <= 5.0f  ? 4.0f
                                           : 6.0f;
  return copysignf(value, x);
}

// Magnitude for an amax.
__device__ __forceinline__ float finite_magnitude(float x) { return is_finite(x) ? fabsf(x) : 0.0f; }

// The least power of two that is not below `x`, a normal positive number.
__device__ __forceinline__ float power_of_two_above(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x7FFFFFu) & 0xFF800000u);
}
