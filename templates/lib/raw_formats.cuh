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
