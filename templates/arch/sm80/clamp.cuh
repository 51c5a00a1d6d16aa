// The smaller and the larger of two numbers in one instruction that keeps a NaN, as fminf and fmaxf do not.

// min.NaN.f32: NaN if either is.
__device__ __forceinline__ float smaller_or_nan(float a, float b) {
  float out;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}

// max.NaN.f32: NaN if either is.
__device__ __forceinline__ float larger_or_nan(float a, float b) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}
