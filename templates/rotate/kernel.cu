$#-
  op: src/kernels/runner/norms.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/rotate for ${ arch.name }$. Do not edit.
//
// rotate: the last rope_dim elements of every head turn by the token's position, in place.
//
//   operand    shape                       in memory                     written / read
//   q          [m, heads, dim]             BF16, row-major               read and written once
//   rope       [positions, rope_dim / 2]   float2 (cos, sin)             read before the launch ahead has ended
//   positions  [m]                         int32                         as rope
//
//   block = kWarps warps, one head each; grid = (head blocks, tokens); no shared memory, no barriers
//   lane: kVector neighbouring elements of each chunk of 32 * kVector
//
//   kHasHadamard   at the end the head is multiplied by the Hadamard matrix / sqrt(dim) and rounded to MXFP4: E2M1 in
//                  groups of 32 with the scale 2^ceil(log2(max(amax, 6 * 2^-126) / 6)), which BF16 holds exactly;
//                  what is not finite stays as it is
//
// Exactness: f32, rounded once, when stored.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/step_arrays.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"
#include "lib/rotary.cuh"
#include "lib/entry_rounding.cuh"

struct Config {
  static constexpr int kHeads = ${ op.heads }$;
  static constexpr int kDim = ${ op.dim }$;
  static constexpr int kRopeDim = ${ op.rope_dim }$;
  static constexpr bool kHasHadamard = ${ op.has_hadamard }$;
  static constexpr int kWarps = ${ op.warps }$;
};

constexpr int kVector = Config::kDim >= 256 ? 8 : larger(Config::kDim / 32, 2);
constexpr int kChunks = ceil_divide(Config::kDim, 32 * kVector);
static_assert((Config::kDim & (Config::kDim - 1)) == 0 && Config::kDim >= 32, "a head is a power of two");
static_assert(!Config::kHasHadamard || kChunks == 1, "the transform exchanges elements of one chunk");
static_assert(Config::kRopeDim % kVector == 0, "a lane's elements are rotated, or not, together");

using Vector = float[kVector];

// A lane's elements of a chunk, as words of two.
__device__ __forceinline__ void load_vector(Vector& to, const bf16* from) {
  struct alignas(2 * kVector) Words {
    uint32_t pairs[kVector / 2];
  };
  const Words words = *reinterpret_cast<const Words*>(from);
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    to[i] = low_float(words.pairs[i / 2]);
    to[i + 1] = high_float(words.pairs[i / 2]);
  }
}

__device__ __forceinline__ void store_vector(bf16* to, const Vector& from) {
  struct alignas(2 * kVector) Words {
    uint32_t pairs[kVector / 2];
  } words;
#pragma unroll
  for (int i = 0; i < kVector; i += 2) words.pairs[i / 2] = pair_from_floats(from[i], from[i + 1]);
  *reinterpret_cast<Words*>(to) = words;
}

// Orthonormal Hadamard transform of a head: exchanges within lanes, then between them.
__device__ __forceinline__ void transform(Vector& values, int lane) {
#pragma unroll
  for (int step = 1; step < kVector; step *= 2) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if ((i & step) != 0) continue;
      const float a = values[i], b = values[i + step];
      values[i] = a + b;
      values[i + step] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < Config::kDim / kVector; step *= 2) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float other = __shfl_xor_sync(~0u, values[i], step);
      values[i] = (lane & step) != 0 ? other - values[i] : values[i] + other;
    }
  }
  const float factor = reciprocal_root(static_cast<float>(Config::kDim));
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] *= factor;
}

// Rounds to E2M1 with the scale of the group of 32 elements.
__device__ __forceinline__ void round_to_mxfp4(Vector& values) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kVector; ++i) amax = fmaxf(amax, finite_magnitude(values[i]));
  const float least = 6.0f * power_of_two(-126);
  const float scale = power_of_two(ceil_log2(fmaxf(lane_maximum(amax, 32 / kVector), least) / 6.0f));
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (is_finite(values[i])) values[i] = nearest_e2m1(values[i] / scale) * scale;
  }
}

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32)
    rotate(bf16* q, const float2* rope, const int* positions, const int* m_on_device, int m) {
  launch_dependents();
  const int token = blockIdx.y, lane = threadIdx.x % 32;
  const int head = blockIdx.x * Config::kWarps + threadIdx.x / 32;
  const bool is_there = token < actual_tokens(m_on_device, m) && head < Config::kHeads;
  const float2* of_position = rope + int64_t{is_there ? of_step(positions, token) : 0} * (Config::kRopeDim / 2);
  // Asked for before the wait: lib/step_arrays.cuh.
  float2 turns[kChunks][kVector / 2] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int element = (chunk * 32 + lane) * kVector, rotated = element - (Config::kDim - Config::kRopeDim);
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      if (rotated >= 0 && element < Config::kDim) turns[chunk][i] = of_position[rotated / 2 + i];
    }
  }
  wait_for_dependency();
  if (!is_there) return;
  bf16* row = q + (int64_t{token} * Config::kHeads + head) * Config::kDim;
  Vector values[kChunks] = {};
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int element = (chunk * 32 + lane) * kVector;
    if (element < Config::kDim) load_vector(values[chunk], row + element);
  }
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int element = (chunk * 32 + lane) * kVector, rotated = element - (Config::kDim - Config::kRopeDim);
    if (rotated >= 0 && element < Config::kDim) rotate_pairs(values[chunk], turns[chunk], 0);
    if constexpr (Config::kHasHadamard) {
      transform(values[chunk], lane);
      round_to_mxfp4(values[chunk]);
    }
    if (element < Config::kDim) store_vector(row + element, values[chunk]);
  }
}
