$#-
  arch: templates/arch/   (count, kind and seed are run-time arguments)
-#$
// Generated from templates/fill for ${ arch.name }$. Do not edit.
//
// fill: random test data, the same for one seed on every GPU. Never zero where zeros would hide an error.
//
//   kind   in memory         values
//   0      byte              every value: e2m1 codes
//   1      byte              e4m3 codes of magnitude 2^-5 to 15, both signs
//   2      byte              low to high, inclusive: block scales
//   3      BF16              uniform in (-1, 1), never zero
//   4      byte              the constant `low`: poison
//
//   block = 256 threads, grid-stride over the elements; no shared memory, no barriers
//
// After: the mixing function is splitmix64 (Steele, Lea, Flood 2014).
#include "lib/words.cuh"
#include "arch/bf16.cuh"

__device__ __forceinline__ uint64_t mixed(uint64_t seed, uint64_t idx) {
  uint64_t z = seed + (idx + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

extern "C" __global__ void __launch_bounds__(256)
    fill(uint8_t* out, int64_t count, int kind, int low, int high, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const uint64_t bits = mixed(seed, i);
    if (kind == 0) {
      out[i] = bits;
    } else if (kind == 1) {
      out[i] = (bits & 0x80) | (0x10 + (bits >> 8) % 0x48);
    } else if (kind == 2) {
      out[i] = low + (bits >> 8) % (high - low + 1);
    } else if (kind == 3) {
      const float value = (static_cast<float>(bits >> 40) + 0.5f) / 8388608.0f - 1.0f;
      reinterpret_cast<bf16*>(out)[i] = bf16_from_float(value);
    } else {
      out[i] = low;
    }
  }
}
