// From f32 sums to stored results: the alpha of a row's segment, and one rounding to BF16 or none.

// Row ranges of a weight with their own alpha (query and key-value parts of a fused projection): rows up to end[0] have
// alpha[0], and so on. The last end covers all rows. Gate and up rows alternate: gate has alpha[0], up alpha[1].
struct Segments {
  int end[4];
  float alpha[4];
};

__device__ __forceinline__ float alpha_of_row(const Segments& segments, int row) {
  if (row < segments.end[0]) return segments.alpha[0];
  if (row < segments.end[1]) return segments.alpha[1];
  if (row < segments.end[2]) return segments.alpha[2];
  return segments.alpha[3];
}

__device__ __forceinline__ void store_value(bf16* to, float value) { *to = bf16_from_float(value); }
__device__ __forceinline__ void store_value(float* to, float value) { *to = value; }
