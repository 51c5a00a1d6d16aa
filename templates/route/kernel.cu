$#-
  op: src/kernels/runner/routing.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/route for ${ arch.name }$. Do not edit.
//
// route: experts of a token by score = sqrt(softplus(logit)), weight = score / sum of the chosen scores * scale.
//
//   operand    shape                 in memory        written / read
//   logits     [m, experts]          f32, row-major   read once
//   bias       [experts]             f32, or null     added for the choice, read before the launch ahead has ended
//   tid2eid    [vocabulary, top_k]   int32, or null   the choice by token id, with kIsHashed
//   token_ids  [m]                   int32            read with kIsHashed
//   experts    [m, top_k]            int32            written
//   weights    [m, top_k]            f32              written
//
//   block = kWarps warps, one token each; lane l has experts l, l + 32, ..; no shared memory, no barriers
//
// By score: the largest of score + bias, one after the other, by two reductions over a warp each; ties to the lower
// index. A logit or biased score that is not finite, a token id or a table entry out of range make all weights of the
// token NaN, so that it shows; the experts stay within range, so that nothing is read beyond the end.
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

// Positive integers in the order of finite numbers; -0 equals 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  const uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return key == 0 ? 1 : key;
}

// The experts of a lane: their scores, and what they are chosen by, zero once they are taken.
struct Candidates {
  float score[kPerLane];
  uint32_t key[kPerLane];
  bool is_bad = false;

  __device__ __forceinline__ void load(const float* logits, const float (&bias)[kPerLane], int lane) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = i * 32 + lane;
      score[i] = 0.0f;
      key[i] = 0;
      if (expert >= Config::kExperts) continue;
      const float logit = logits[expert];
      score[i] = sqrtf(softplus(logit));
      const float biased = score[i] + bias[i];
      key[i] = ordered(biased);
      is_bad |= !is_finite(logit) || !is_finite(biased);
    }
  }

  // Takes the best expert of all lanes, the lowest of equals; its score comes along.
  __device__ __forceinline__ int take_best(float& best_score, int lane) {
    uint32_t best_key = 0;
    float own_score = 0.0f;
    int own_expert = lane;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (key[i] > best_key) {
        best_key = key[i];
        own_score = score[i];
        own_expert = i * 32 + lane;
      }
    }
    const bool is_best = best_key == __reduce_max_sync(~0u, best_key);
    const int expert = __reduce_min_sync(~0u, is_best ? own_expert : kNoExpert);
    best_score = __shfl_sync(~0u, own_score, expert % 32);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (expert == i * 32 + lane) key[i] = 0;
    }
    return expert;
  }
};

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32)
    route(const float* logits, const float* bias, const int* tid2eid, const int* token_ids, int* experts,
          float* weights, const int* m_on_device, int m) {
  launch_dependents();
  const int token = blockIdx.x * Config::kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  float own_bias[kPerLane] = {};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (bias != nullptr && i * 32 + lane < Config::kExperts) own_bias[i] = bias[i * 32 + lane];
  }
  wait_for_dependency();
  if (token >= actual_tokens(m_on_device, m)) return;
  const float* row = logits + int64_t{token} * Config::kExperts;
  Candidates candidates;
  candidates.load(row, own_bias, lane);
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
#pragma unroll
    for (int slot = 0; slot < Config::kTopK; ++slot) {
      float score;
      const int expert = candidates.take_best(score, lane);
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
