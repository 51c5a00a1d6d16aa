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
//   tid2eid    [vocabulary, top_k]   int32, or null   the choice by token id, with kIsHashed, as bias
//   token_ids  [m]                   int32            read with kIsHashed, as bias
//   experts    [m, top_k]            int32            written
//   weights    [m, top_k]            f32              written
//   mix        [m, 20]               f32              C balanced in place, with kBalances
//
//   block = kTokens tokens of kTokenWarps warps each, one of which is 1; grid = groups of tokens
//   with kBalances: as many blocks again, which finish the mixing matrices that templates/hc_pre has left
//   shared memory: scores of all experts, and the integers that they are chosen by
//   barrier: scores are there; of a token's warps the first goes on alone, lane l with kPerLane neighbouring experts
//
// By score: the largest of score + bias, one after the other, by a reduction and a vote each; ties to the lower index.
// A logit or biased score that is not finite, a token id or a table entry out of range make all weights of the token
// NaN, so that it shows; the experts stay within range, so that nothing is read beyond the end.
// Exactness: f32; the chosen scores are added in the order of their slots.
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "arch/bf16.cuh"
#include "lib/bucket.cuh"
#include "lib/step_arrays.cuh"
#include "lib/math.cuh"
#include "lib/elementary.cuh"
#include "lib/elements.cuh"
#include "arch/reciprocal.cuh"
#include "lib/reciprocal.cuh"
#include "lib/sinkhorn.cuh"

struct Config {
  static constexpr int kExperts = ${ op.experts }$;
  static constexpr int kTopK = ${ op.top_k }$;
  static constexpr float kScale = ${ op.scale }$;
  static constexpr bool kIsHashed = ${ op.is_hashed }$;
  static constexpr int kVocabulary = ${ op.vocabulary }$;
  static constexpr int kTokens = ${ op.tokens }$;           // of a block
  static constexpr int kTokenWarps = ${ op.token_warps }$;  // of a token
  static constexpr bool kBalances = ${ op.balances }$;
  static constexpr int kRounds = ${ op.rounds }$;           // of the balance
  static constexpr float kHcEpsilon = ${ op.hc_epsilon }$;
};

constexpr int kTokenThreads = Config::kTokenWarps * 32;
constexpr int kScored = ceil_divide(Config::kExperts, kTokenThreads);  // experts that a thread scores
constexpr int kPerLane = ceil_divide(Config::kExperts, 32);            // experts that a lane chooses from
static_assert(Config::kTopK <= 32 && Config::kTopK <= Config::kExperts, "a lane to a slot, an expert to a slot");
static_assert(Config::kTokens == 1 || Config::kTokenWarps == 1, "a barrier joins one token's threads");
static_assert(Config::kTokens == 1 || !Config::kBalances, "a matrix to a block");

// Of one token.
struct Scores {
  float score[Config::kExperts];
  uint32_t key[Config::kExperts];  // what experts are chosen by
};

// Positive integers in the order of finite numbers; -0 equals 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  const uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return key == 0 ? 1 : key;
}

// Scores the experts `thread`, `thread` + kTokenThreads, .. of a token. Whether a number was not finite.
__device__ __forceinline__ bool score_experts(Scores& scores, const float* logits, const float (&bias)[kScored],
                                              int thread) {
  bool is_bad = false;
#pragma unroll
  for (int i = 0; i < kScored; ++i) {
    const int expert = i * kTokenThreads + thread;
    if (expert >= Config::kExperts) continue;
    const float logit = logits[expert];
    const float score = sqrtf(softplus(logit));
    const float biased = score + bias[i];
    scores.score[expert] = score;
    scores.key[expert] = ordered(biased);
    is_bad |= !is_finite(logit) || !is_finite(biased);
  }
  return is_bad;
}

// Keys of a lane's experts, zero once they are taken.
struct Candidates {
  uint32_t key[kPerLane];

  __device__ __forceinline__ void load(const Scores& scores, int lane) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int expert = lane * kPerLane + i;
      key[i] = expert < Config::kExperts ? scores.key[expert] : 0;
    }
  }

  // Takes the best expert of all lanes, the lowest of equals.
  __device__ __forceinline__ int take_best(int lane) {
    uint32_t best = key[0];
#pragma unroll
    for (int i = 1; i < kPerLane; ++i) best = key[i] > best ? key[i] : best;
    int place = 0;  // the lowest of the lane's best, found while the reduction is under way
#pragma unroll
    for (int i = kPerLane - 1; i > 0; --i) place = key[i] == best ? i : place;
    if (key[0] == best) place = 0;
    const unsigned winners = __ballot_sync(~0u, best == __reduce_max_sync(~0u, best));
    const int winner = __ffs(winners) - 1;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane == winner && place == i) key[i] = 0;
    }
    return winner * kPerLane + __shfl_sync(~0u, place, winner);
  }
};

// The expert of the slot `lane` by token id. `is_bad` becomes true where id or expert is out of range.
__device__ __forceinline__ int listed_expert(const int* tid2eid, int id, bool& is_bad, int lane) {
  const bool is_known = id >= 0 && id < Config::kVocabulary;
  int expert = -1;
  if (is_known && lane < Config::kTopK) expert = tid2eid[int64_t{id} * Config::kTopK + lane];
  const bool is_there = expert >= 0 && expert < Config::kExperts;
  is_bad |= lane < Config::kTopK && !is_there;
  return is_there ? expert : lane % Config::kExperts;
}

extern "C" __global__ void __launch_bounds__(Config::kTokens * kTokenThreads)
    route(const float* logits, const float* bias, const int* tid2eid, const int* token_ids, int* experts,
          float* weights, const int* m_on_device, int m, float* mix) {
  __shared__ Scores shared[Config::kTokens];
  launch_dependents();
  const int lane = threadIdx.x % 32, thread = threadIdx.x % kTokenThreads, of_block = threadIdx.x / kTokenThreads;
  const int token = blockIdx.x * Config::kTokens + of_block;
  float own_bias[kScored] = {};
#pragma unroll
  for (int i = 0; i < kScored; ++i) {
    const int expert = i * kTokenThreads + thread;
    if (bias != nullptr && expert < Config::kExperts) own_bias[i] = bias[expert];
  }
  const int n_tokens = actual_tokens(m_on_device, m);
  bool is_bad = false;
  int own_expert = 0;
  if constexpr (Config::kIsHashed) {
    if (token < n_tokens) own_expert = listed_expert(tid2eid, of_step(token_ids, token), is_bad, lane);
  }
  wait_for_dependency();
  if constexpr (Config::kBalances) {
    if (token >= m) {
      if (token - m < n_tokens && threadIdx.x < 32) balance_mix<Config>(mix + int64_t{token - m} * 20);
      return;
    }
  }
  if (token >= n_tokens) return;
  Scores& scores = shared[of_block];
  is_bad |= score_experts(scores, logits + int64_t{token} * Config::kExperts, own_bias, thread);
  if constexpr (Config::kTokenWarps > 1) {
    is_bad = __syncthreads_or(is_bad) != 0;
    if (thread >= 32) return;
  } else {
    is_bad = __any_sync(~0u, is_bad);
    __syncwarp();
  }
  if constexpr (!Config::kIsHashed) {
    Candidates candidates;
    candidates.load(scores, lane);
#pragma unroll
    for (int slot = 0; slot < Config::kTopK; ++slot) {
      const int expert = candidates.take_best(lane);
      if (lane == slot) own_expert = expert;
    }
  }
  const float own_score = scores.score[own_expert];
  float sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < Config::kTopK; ++slot) sum += __shfl_sync(~0u, own_score, slot);
  if (lane >= Config::kTopK) return;
  experts[int64_t{token} * Config::kTopK + lane] = own_expert;
  weights[int64_t{token} * Config::kTopK + lane] = is_bad ? no_value() : own_score / sum * Config::kScale;
}
