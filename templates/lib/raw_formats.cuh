// The four formats of raw weights under one name each: value(raw, row, k) is the weight, exactly.

struct RawNvfp4 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int) {
    return value_of_e2m1(raw_e2m1(raw, row, k)) * value_of_e4m3(raw.scales[row * (raw.k / 16) + k / 16]);
  }
};

struct RawMxfp4 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int) {
    return value_of_e2m1(raw_e2m1(raw, row, k)) * value_of_ue8m0(raw.scales[row * (raw.k / 32) + k / 32]);
  }
};

struct RawFp8 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int half_rows) {
    const uint8_t scale = raw.scales[int64_t{fp8_scale_row(row, half_rows)} * ceil_divide(raw.k, 128) + k / 128];
    return value_of_e4m3(raw.codes[row * raw.k + k]) * value_of_ue8m0(scale);
  }
};

struct RawBf16 {
  static __device__ __forceinline__ double value(const Raw& raw, int64_t row, int k, int) {
    return float_of(reinterpret_cast<const bf16*>(raw.codes)[row * raw.k + k]);
  }
};

// Tokens: value(a, row, k) is A's element `k` of the row that begins at element `row`.
struct RawBf16Tokens {
  static __device__ __forceinline__ double value(const void* a, int64_t row, int k) {
    return float_of(static_cast<const bf16*>(a)[row + k]);
  }
};

// E4M3, each 16 in the order of FP8 operands: position 4c + i holds k { 2c + 8, 2c, 2c + 9, 2c + 1 }[i].
struct RawE4m3Tokens {
  static __device__ __forceinline__ double value(const void* a, int64_t row, int k) {
    const int c = k % 8 / 2, i = k % 2 * 2 + (k % 16 < 8);
    return value_of_e4m3(static_cast<const uint8_t*>(a)[row + k / 16 * 16 + 4 * c + i]);
  }
};
