// The activation of gated layers, with defined bits: from FMA and IEEE operations, and a division that rounds as IEEE's
// does. src/quant/math.rs gives the same bits on the CPU.

// x * sigmoid(x) as x / (1 + 2^(-x log2 e)) without a branch: a few of them run side by side. Below -86.5 it is what it
// is there, -2e-36; an infinite x gives NaN. The division rounds as IEEE's does: the divisor is between 1 and 2^125, so
// its reciprocal is rounded right by one step of Newton's, and the quotient by one step with the exact remainder.
__device__ __forceinline__ float silu(float x) {
  constexpr float kLog2E = 1.44269502162933349609375f;  // 0x3FB8AA3B
  constexpr float kWhole = 12582912.0f;                 // 1.5 * 2^23: a sum with it has no fraction
  const float bounded = larger_or_nan(x, -86.5f);
  float t = -bounded * kLog2E;
  t = t < -126.0f ? -126.0f : t;
  const float shifted = t + kWhole;
  const float f = t - (shifted - kWhole);
  float p = __int_as_float(0x3926093E);
  p = __fmaf_rn(p, f, __int_as_float(0x3AAFDFD1));
  p = __fmaf_rn(p, f, __int_as_float(0x3C1D90E4));
  p = __fmaf_rn(p, f, __int_as_float(0x3D6356D4));
  p = __fmaf_rn(p, f, __int_as_float(0x3E75FDF3));
  p = __fmaf_rn(p, f, __int_as_float(0x3F317219));
  p = __fmaf_rn(p, f, 1.0f);
  const float divisor = 1.0f + __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
  const float inverse = reciprocal_in_range(divisor);
  const float quotient = bounded * inverse;
  const float rounded = __fmaf_rn(__fmaf_rn(-divisor, quotient, bounded), inverse, quotient);
  return rounded + (x - x);
}

// silu(min(gate, limit)) * clamp(up, -limit, limit). A NaN in either operand stays, as with fminf it would not.
__device__ __forceinline__ float swiglu(float gate, float up, float limit) {
  gate = smaller_or_nan(gate, limit);
  up = larger_or_nan(smaller_or_nan(up, limit), -limit);
  return silu(gate) * up;
}
