// FP8 conversion with one rounding.

// cvt.rn.satfinite.e4m3x2.f32: two floats to two E4M3 codes, `low` in the low byte; nearest, saturating at 448.
__device__ __forceinline__ uint32_t e4m3_pair_from_floats(float low, float high) {
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}
