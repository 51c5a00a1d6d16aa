// Neighbouring elements of a row as f32, and back with one rounding each: BF16 or f32 behind one name.

__device__ __forceinline__ float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// Magnitude for an amax, in which what is not finite takes no part.
__device__ __forceinline__ float finite_magnitude(float x) { return is_finite(x) ? fabsf(x) : 0.0f; }

// A quiet NaN: what stands where there is no value to give.
__device__ __forceinline__ float no_value() { return __int_as_float(0x7FC00000); }

// Eight elements, 16-byte aligned.
__device__ __forceinline__ void load_eight(float (&to)[8], const bf16* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  to[0] = low_float(words.x);
  to[1] = high_float(words.x);
  to[2] = low_float(words.y);
  to[3] = high_float(words.y);
  to[4] = low_float(words.z);
  to[5] = high_float(words.z);
  to[6] = low_float(words.w);
  to[7] = high_float(words.w);
}

__device__ __forceinline__ void load_eight(float (&to)[8], const float* from) {
  const float4 first = reinterpret_cast<const float4*>(from)[0];
  const float4 second = reinterpret_cast<const float4*>(from)[1];
  to[0] = first.x;
  to[1] = first.y;
  to[2] = first.z;
  to[3] = first.w;
  to[4] = second.x;
  to[5] = second.y;
  to[6] = second.z;
  to[7] = second.w;
}

__device__ __forceinline__ void store_eight(bf16* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(pair_from_floats(from[0], from[1]), pair_from_floats(from[2], from[3]),
                                             pair_from_floats(from[4], from[5]), pair_from_floats(from[6], from[7]));
}

__device__ __forceinline__ void store_eight(float* to, const float (&from)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

// One or two elements, aligned to their size together.
__device__ __forceinline__ void load_few(float (&to)[1], const bf16* from) { to[0] = float_of(*from); }
__device__ __forceinline__ void load_few(float (&to)[1], const float* from) { to[0] = *from; }

__device__ __forceinline__ void load_few(float (&to)[2], const bf16* from) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
  to[0] = low_float(pair);
  to[1] = high_float(pair);
}

__device__ __forceinline__ void load_few(float (&to)[2], const float* from) {
  const float2 pair = *reinterpret_cast<const float2*>(from);
  to[0] = pair.x;
  to[1] = pair.y;
}

// Stores elements and leaves in `values` what was stored.
__device__ __forceinline__ void store_few(bf16* to, float (&values)[1]) {
  *to = bf16_from_float(values[0]);
  values[0] = float_of(bf16_from_float(values[0]));
}

__device__ __forceinline__ void store_few(float* to, float (&values)[1]) { *to = values[0]; }

__device__ __forceinline__ void store_few(bf16* to, float (&values)[2]) {
  const uint32_t pair = pair_from_floats(values[0], values[1]);
  *reinterpret_cast<uint32_t*>(to) = pair;
  values[0] = low_float(pair);
  values[1] = high_float(pair);
}

__device__ __forceinline__ void store_few(float* to, float (&values)[2]) {
  *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
}
