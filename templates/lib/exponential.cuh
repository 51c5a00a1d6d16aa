// Powers for probabilities: the same bits on every chip, and those of src/quant/exponential.rs.

// 2^x for x <= 0, as probabilities need it, in 12 instructions: within 7.1e-8 from -126 up, 0 below -126.5, so for
// -infinity too. A little above 0, where a maximum was rounded down, it holds as well (to 127). NaN in is NaN out.
// In this order: `x < -127 ? -127 : x`, a comparison, which keeps NaN; u = x + 1.5 * 2^23, whose last bits are n, x
// rounded to the nearest integer, ties to even; f = x - (u - 1.5 * 2^23), exact; p as in exp2_defined; p * 2^n, the
// power made of exponent bits, which for n = -127 are those of 0.
__device__ __forceinline__ float exp2_of_negative(float x) {
  constexpr float kRound = 12582912.0f;
  x = x < -127.0f ? -127.0f : x;
  const float u = x + kRound;
  const float f = x - (u - kRound);
  float p = __int_as_float(0x3926093E);
  p = __fmaf_rn(p, f, __int_as_float(0x3AAFDFD1));
  p = __fmaf_rn(p, f, __int_as_float(0x3C1D90E4));
  p = __fmaf_rn(p, f, __int_as_float(0x3D6356D4));
  p = __fmaf_rn(p, f, __int_as_float(0x3E75FDF3));
  p = __fmaf_rn(p, f, __int_as_float(0x3F317219));
  p = __fmaf_rn(p, f, 1.0f);
  // NaN gives any power here, and p carries it: adding to the exponent of p in place of the product would lose it.
  return p * __uint_as_float((__float_as_uint(u) << 23) + 0x3F800000u);
}
