// A reciprocal for long chains of them.

// 1 / x rounded to nearest for a magnitude of x from 2^-125 to 2^125; NaN for NaN and infinity. An estimate and one
// step of Newton's, which is how __frcp_rn treats such x, but without its test for other ones: a branch for each
// reciprocal keeps independent ones from running side by side.
__device__ __forceinline__ float reciprocal_in_range(float x) {
  const float estimate = reciprocal_estimate(x);
  return __fmaf_rn(estimate, __fmaf_rn(-x, estimate, 1.0f), estimate);
}
