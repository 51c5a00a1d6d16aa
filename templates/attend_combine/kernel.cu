$#-
  op: src/kernels/runner/attend.rs   arch: templates/arch/   (tokens and splits are run-time arguments)
-#$
// Generated from templates/attend_combine for ${ arch.name }$. Do not edit.
//
// attend_combine: O[t, h, :] = rotated back(sum_s w_s * part_s / (sum_s w_s * sum_s + 2^(sink - max))), where
// w_s = 2^(max_s - max), over the splits of templates/attend that have keys, in ascending order.
//
//   operand     shape                        in memory                         written / read
//   workspace   [splits, m, heads, head_dim] f32 sums, then (maximum, sum)     read once
//   o           [m, heads, head_dim]         BF16                              written
//
//   block = head_dim / 4 threads, one token and head, four columns each; grid = (tokens, heads); no shared memory
//
// Exactness: f32 sums in the order of the splits, one rounding to BF16.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/math.cuh"
#include "lib/bucket.cuh"
#include "lib/attended.cuh"

struct Config {
  static constexpr Compressed kCompressed = ${ op.compressed }$;
  static constexpr int kHeads = ${ op.heads }$;
  static constexpr int kHeadDim = ${ op.head_dim }$;
  static constexpr int kRopeDim = ${ op.rope_dim }$;   // last columns, rotated
  static constexpr int kWindow = ${ op.window }$;
  static constexpr int kRatio = ${ op.ratio }$;        // tokens of an entry
  static constexpr int kTopK = ${ op.top_k }$;         // length of a list
  static constexpr int kKeyTile = ${ op.key_tile }$;   // splits end on such tiles
};
static_assert(Config::kRopeDim % 4 == 0, "a thread's columns are rotated, or they are not");

extern "C" __global__ void __launch_bounds__(Config::kHeadDim / 4, 1)
    attend_combine(const float* workspace, const float* sinks, const float2* rope, const int* positions, bf16* o,
                   const int* m_on_device, int m, int splits) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.x;
  if (token >= actual_tokens(m_on_device, m)) return;
  const int position = positions[token];
  const Attended<Config> attended(position);
  const int64_t rows = int64_t{m} * Config::kHeads;
  const int64_t row = int64_t{token} * Config::kHeads + blockIdx.y;
  const float2* statistics = reinterpret_cast<const float2*>(workspace + splits * rows * Config::kHeadDim) + row;
  float most = -__int_as_float(0x7F800000);
  for (int split = 0; split < splits; ++split) {
    const TileRange range = attended.range(split, splits);
    if (range.begin < range.end) most = fmaxf(most, statistics[split * rows].x);
  }
  const int column = threadIdx.x * 4;
  float2 left = make_float2(0.0f, 0.0f);
  float2 right = make_float2(0.0f, 0.0f);
  float sum = 0.0f;
#pragma unroll 4
  for (int split = 0; split < splits; ++split) {
    const TileRange range = attended.range(split, splits);
    if (range.begin == range.end) continue;  // nothing was written
    const float2 of_split = statistics[split * rows];
    const float weight = exp2_defined(of_split.x - most);
    const float4 part =
        *reinterpret_cast<const float4*>(workspace + (split * rows + row) * Config::kHeadDim + column);
    sum = __fmaf_rn(weight, of_split.y, sum);
    left = make_float2(__fmaf_rn(weight, part.x, left.x), __fmaf_rn(weight, part.y, left.y));
    right = make_float2(__fmaf_rn(weight, part.z, right.x), __fmaf_rn(weight, part.w, right.y));
  }
  const float inverse = 1.0f / (sum + exp2_defined(sinks[blockIdx.y] * kLog2E - most));
  left = make_float2(left.x * inverse, left.y * inverse);
  right = make_float2(right.x * inverse, right.y * inverse);
  const int rotated = column - (Config::kHeadDim - Config::kRopeDim);
  if (rotated >= 0) {
    const float2* turns = rope + int64_t{position} * (Config::kRopeDim / 2) + rotated / 2;
    left = rotated_back(left, turns[0]);
    right = rotated_back(right, turns[1]);
  }
  const uint2 bits = make_uint2(pair_from_floats(left.x, left.y), pair_from_floats(right.x, right.y));
  *reinterpret_cast<uint2*>(o + row * Config::kHeadDim + column) = bits;
}
