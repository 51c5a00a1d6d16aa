// The chip's estimate of a reciprocal.

// rcp.approx.ftz.f32: 1 / x within one unit in the last place. A start for an exact result, never a result.
__device__ __forceinline__ float reciprocal_estimate(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
