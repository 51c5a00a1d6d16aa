$#-
  op: src/kernels/runner/routing.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/route for ${ arch.name }$. Do not edit.
//
// route: experts of a token by score = sqrt(softplus(logit)), weight = score / sum of the chosen scores * scale.
//
//   operand    shape                 in memory        written / read
//   logits     [m, experts]          f32, row-major   read once
//   bias       [experts]             f32, or null     added for the choice only
//   tid2eid    [vocabulary, top_k]   int32, or null   the choice by token id, with kIsHashed
//   token_ids  [m]                   int32            read with kIsHashed
//   experts    [m, top_k]            int32            written
//   weights    [m, top_k]            f32              written
//
//   block = kWarps warps, one token each; lane l has experts l, l + 32, ..; no shared memory, no barriers
//
// By score: the largest of score + bias, one after the other; ties to the lower index. A logit or biased score that is
// not finite, a token id or a table entry out of range make all weights of the token NaN, so that it shows; the experts
// stay within range, so that nothing is read beyond the end.
// Exactness: f32; the chosen scores are added in the order of their slots.
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "arch/bf16.cuh"
#include "lib/bucket.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"

struct Config {
  static constexpr int kExperts = ${ op.experts }$;
  static constexpr int kTopK = ${ op.top_k }$;
  static constexpr float kScale = ${ op.scale }$;
  static constexpr bool kIsHashed = ${ op.is_hashed }$;
  static constexpr int kVocabulary = ${ op.vocabulary }$;
  static constexpr int kWarps = ${ op.warps }$;
};

constexpr int kPerLane = ceil_divide(Config::kExperts, 32);
constexpr int kNoExpert = 0x7FFFFFFF;
static_assert(Config::kTopK <= 32 && Config::kTopK <= Config::kExperts, "a lane to a slot, an expert to a slot");

// The experts of a lane: their scores, and what they are chosen by.
struct Candidates {
  float score[kPerLane];
  float biased[kPerLane];
  bool is_bad = false;

  __device__ __forceinline__ void load(const float* logits, const float* bias, int lane) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = i * 32 + lane;
      score[i] = biased[i] = 0.0f;
      if (expert >= Config::kExperts) continue;
      const float logit = logits[expert];
      score[i] = sqrtf(softplus(logit));
      biased[i] = score[i] + (bias == nullptr ? 0.0f : bias[expert]);
      is_bad |= !is_finite(logit) || !is_finite(biased[i]);
    }
  }

  // The best expert of all lanes that is not in `taken`, a bit for each of this lane's; its score comes along.
  __device__ __forceinline__ int best(float& best_score, uint32_t& taken, int lane) const {
    float value = 0.0f, own_score = 0.0f;
    int expert = kNoExpert;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const bool is_open = i * 32 + lane < Config::kExperts && (taken >> i & 1u) == 0;
      // The comparison is false for NaN, which therefore only wins where nothing else is left.
      if (is_open && (expert == kNoExpert || biased[i] > value)) {
        value = biased[i];
        own_score = score[i];
        expert = i * 32 + lane;
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const float other_value = __shfl_xor_sync(~0u, value, step);
      const float other_score = __shfl_xor_sync(~0u, own_score, step);
      const int other = __shfl_xor_sync(~0u, expert, step);
      const bool is_better = expert == kNoExpert || other_value > value || (!(value > other_value) && other < expert);
      if (other != kNoExpert && is_better) {
        value = other_value;
        own_score = other_score;
        expert = other;
      }
    }
    // With NaN among them lanes may disagree, so the first lane decides: what it has is some lane's open expert.
    expert = __shfl_sync(~0u, expert, 0);
    best_score = __shfl_sync(~0u, own_score, 0);
    if (expert % 32 == lane) taken |= 1u << (expert / 32);
    return expert;
  }
};

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32)
    route(const float* logits, const float* bias, const int* tid2eid, const int* token_ids, int* experts,
          float* weights, const int* m_on_device, int m) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.x * Config::kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (token >= actual_tokens(m_on_device, m)) return;
  const float* row = logits + int64_t{token} * Config::kExperts;
  Candidates candidates;
  candidates.load(row, bias, lane);
  bool is_bad = __any_sync(~0u, candidates.is_bad);
  int own_expert = 0;
  float own_score = 0.0f;
  if constexpr (Config::kIsHashed) {
    const int id = token_ids[token];
    const bool is_known = id >= 0 && id < Config::kVocabulary;
    int expert = -1;
    if (is_known && lane < Config::kTopK) expert = tid2eid[int64_t{id} * Config::kTopK + lane];
    const bool is_there = expert >= 0 && expert < Config::kExperts;
    is_bad |= __any_sync(~0u, lane < Config::kTopK && !is_there);
    own_expert = is_there ? expert : lane % Config::kExperts;
    own_score = sqrtf(softplus(row[own_expert]));
  } else {
    uint32_t taken = 0;
#pragma unroll
    for (int slot = 0; slot < Config::kTopK; ++slot) {
      float score;
      const int expert = candidates.best(score, taken, lane);
      if (lane == slot) {
        own_expert = expert;
        own_score = score;
      }
    }
  }
  float sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < Config::kTopK; ++slot) sum += __shfl_sync(~0u, own_score, slot);
  if (lane >= Config::kTopK) return;
  experts[int64_t{token} * Config::kTopK + lane] = own_expert;
  weights[int64_t{token} * Config::kTopK + lane] = is_bad ? no_value() : own_score / sum * Config::kScale;
}
