// Quantised and back at once: what a value becomes when it is kept in E4M3 or E2M1 under a power-of-two scale.

__device__ __forceinline__ bool is_finite_number(float x) {
  return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u;
}

// The least n with 2^n >= x, for normal x > 0.
__device__ __forceinline__ int ceil_log2(float x) {
  const uint32_t bits = __float_as_uint(x);
  return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7FFFFFu) != 0 ? 1 : 0);
}

// Nearest value of E4M3, ties to even, saturating at 448; `x` is finite.
__device__ __forceinline__ float nearest_e4m3(float x) {
  const float magnitude = fminf(fabsf(x), 448.0f);
  if (magnitude < 0.015625f) return copysignf(rintf(magnitude * 512.0f) * 0.001953125f, x);
  const uint32_t bits = __float_as_uint(magnitude);
  return copysignf(__uint_as_float((bits + 0x7FFFFu + (bits >> 20 & 1u)) & ~0xFFFFFu), x);
}

// Nearest value of E2M1, ties to the even code, saturating at 6; `x` is finite.
__device__ __forceinline__ float nearest_e2m1(float x) {
  const float magnitude = fabsf(x);
  const float nearest = magnitude <= 0.25f   ? 0.0f
                        : magnitude < 0.75f  ? 0.5f
                        : magnitude <= 1.25f ? 1.0f
                        : magnitude < 1.75f  ? 1.5f
                        : magnitude <= 2.5f  ? 2.0f
                        : magnitude < 3.5f   ? 3.0f
                        : magnitude <= 5.0f  ? 4.0f
                                             : 6.0f;
  return copysignf(nearest, x);
}
