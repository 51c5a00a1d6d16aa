// Weights as checkpoints hold them, one value at a time. For packing and for the reference, not for speed.
//
//   codes    e2m1: [rows, k / 2], low nibble first   e4m3: [rows, k]   BF16: [rows, k]
//   scales   NVFP4: e4m3 [rows, k / 16]   MXFP4: ue8m0 [rows, k / 32]   FP8: ue8m0 [scale rows, ceil(k / 128)]

struct Raw {
  const uint8_t* codes;
  const uint8_t* scales;
  int k;
};

// Rows of the FP8 scale grid above `row`. Stacked gate and up halves of `half_rows` rows have a grid each.
__device__ __forceinline__ int fp8_scale_row(int row, int half_rows) {
  if (half_rows == 0) return row / 128;
  return row < half_rows ? row / 128 : ceil_divide(half_rows, 128) + (row - half_rows) / 128;
}

__device__ __forceinline__ uint32_t raw_e2m1(const Raw& raw, int64_t row, int k) {
  const uint8_t pair = raw.codes[row * (raw.k / 2) + k / 2];
  return k % 2 == 0 ? pair & 15u : pair >> 4;
}

// The value of a code as a double: exact for every format.
__device__ __forceinline__ double value_of_e2m1(uint32_t code) {
  const uint32_t magnitude = code & 7;
  const double value = magnitude < 2 ? 0.5 * magnitude : ldexp(1.0 + 0.5 * (magnitude & 1), int(magnitude >> 1) - 1);
  return code & 8 ? -value : value;
}

__device__ __forceinline__ double value_of_e4m3(uint32_t byte) {
  const int exponent = byte >> 3 & 15;
  const double mantissa = byte & 7;
  const double value = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8.0 + mantissa, exponent - 10);
  return byte & 0x80 ? -value : value;
}

__device__ __forceinline__ double value_of_ue8m0(uint32_t byte) { return ldexp(1.0, int(byte) - 127); }
