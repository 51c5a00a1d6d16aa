$#-
  op: src/kernels/runner/index.rs   arch: templates/arch/   (tokens and capacity are run-time arguments)
-#$
// Generated from templates/top_k for ${ arch.name }$. Do not edit.
//
// top_k: picks[t, :] = the top_k visible entries of token t with the largest scores, in ascending order, then -1. Of
// equal scores the lower entries win. A token that sees at most top_k entries gets all of them, unseen.
//
//   operand   shape            in memory                             written / read
//   scores    [m, capacity]    f32, visible entries only             read once; of long rows four times
//   positions [m]              int32                                 read before the launch ahead has ended
//   picks     [m, top_k]       int32                                 written
//
//   block = kThreads threads, one token; grid = tokens
//   shared memory: a number a warp; for long rows a histogram of one digit
//
// Scores become integers of the same order, and what is sought is the top_k-th largest of them.
//
//   up to kHeld entries a thread stay in registers. Two bits of the sought integer are found at a time: warps count how
//   many keys reach each of three bounds, three counts in one word, and one barrier later every warp knows the totals.
//   It ends as soon as a bound has exactly top_k keys above it, for scores that differ after ten of the sixteen turns
//
//   longer rows: three digits of 11, 11 and 10 bits by histograms, read again for each
//
// Then one pass writes. Counts are integers, so nothing depends on the order in which they are made. NaN is larger than
// everything and so stays in sight; -0 equals 0.
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/step_arrays.cuh"

struct Config {
  static constexpr int kRatio = ${ op.ratio }$;      // tokens of an entry
  static constexpr int kTopK = ${ op.top_k }$;
  static constexpr int kThreads = ${ op.threads }$;
};

constexpr int kBins = 2048;
constexpr int kWarps = Config::kThreads / 32;
constexpr int kHeld = 16;  // keys of a thread
constexpr int kBinsOfThread = kBins / Config::kThreads;
static_assert(kBins % Config::kThreads == 0 && Config::kThreads <= 1024, "whole bins, and counts of 16 bits");
static_assert(32 * kHeld < 1024 && kHeld * Config::kThreads < 65536, "counts of a warp in 10 bits, of a block in 16");

struct Shared {
  unsigned histogram[kBins];
  unsigned of_warp[2][kWarps];
  unsigned digit;
  unsigned n_left;
};

// Unsigned integers in the order of the scores.
__device__ __forceinline__ uint32_t ordered(float score) {
  if (score != score) return 0xFFFFFFFFu;
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Sum of `count` over the threads before this one; `total` over all. The caller alternates `turn`, so that one barrier
// is enough.
__device__ __forceinline__ unsigned sum_before(unsigned& total, Shared& shared, unsigned count, int turn) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  unsigned sum = count;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const unsigned other = __shfl_up_sync(0xFFFFFFFFu, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == 31) shared.of_warp[turn][warp] = sum;
  __syncthreads();
  unsigned before = sum - count;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared.of_warp[turn][w];
    total += shared.of_warp[turn][w];
  }
  return before;
}

// The digit of the n_left-th largest of the scores that share `prefix` above it, and how many to take among those that
// share the digit too.
__device__ __forceinline__ void find_digit(Shared& shared, const float* scores, int n, uint32_t prefix, int shift,
                                           int bits) {
  const unsigned n_left = shared.n_left;
  for (int i = threadIdx.x; i < kBins; i += Config::kThreads) shared.histogram[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += Config::kThreads) {
    const uint32_t key = ordered(scores[i]);
    // A shift by 32 is not defined: the first digit has no prefix.
    const bool is_candidate = shift + bits == 32 || (key ^ prefix) >> (shift + bits) == 0;
    if (is_candidate) atomicAdd(&shared.histogram[key >> shift & ((1u << bits) - 1)], 1u);
  }
  __syncthreads();
  unsigned counts[kBinsOfThread];
  unsigned sum = 0;
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsOfThread;  // bins from the largest digit down
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) sum += counts[i] = shared.histogram[top - i];
  unsigned total;
  unsigned before = sum_before(total, shared, sum, 0);
#pragma unroll
  for (int i = 0; i < kBinsOfThread; ++i) {
    if (before < n_left && before + counts[i] >= n_left) {
      shared.digit = top - i;
      shared.n_left = n_left - before;
    }
    before += counts[i];
  }
  __syncthreads();
}

// Writes all entries above `least` and the first `n_equal` that equal it, in ascending order.
__device__ __forceinline__ void write_picks(int* picks, Shared& shared, const float* scores, int n, uint32_t least,
                                            unsigned n_equal) {
  unsigned greater = 0;  // entries before the current ones
  unsigned equal = 0;
  int turn = 0;
  for (int begin = 0; begin < n; begin += Config::kThreads, turn ^= 1) {
    const int entry = begin + threadIdx.x;
    const uint32_t key = entry < n ? ordered(scores[entry]) : 0;
    const bool is_greater = entry < n && key > least;
    const bool is_equal = entry < n && key == least;
    unsigned total;
    const unsigned before = sum_before(total, shared, (is_greater ? 1u : 0u) | (is_equal ? 1u << 16 : 0u), turn);
    const unsigned greater_before = greater + (before & 0xFFFFu);
    const unsigned equal_before = equal + (before >> 16);
    if (is_greater || (is_equal && equal_before < n_equal)) {
      picks[greater_before + (equal_before < n_equal ? equal_before : n_equal)] = entry;
    }
    greater += total & 0xFFFFu;
    equal += total >> 16;
  }
}

// The keys of a row, all in registers. A warp has a stretch of neighbouring entries, lane l of it l, l + 32, ..
struct Held {
  uint32_t of[kHeld];  // zero, which is no score's key, where there is no entry
  int per_lane;        // in use, the same in all threads
  int first;           // entry of of[0]

  __device__ __forceinline__ void load(const float* scores, int n) {
    per_lane = ceil_divide(n, Config::kThreads);
    first = threadIdx.x / 32 * 32 * per_lane + threadIdx.x % 32;
    // All loads are under way together, and neighbouring lanes read neighbouring entries.
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      of[i] = i < per_lane && first + i * 32 < n ? ordered(scores[first + i * 32]) : 0;
    }
  }

  // The largest integer that top_k keys reach; or, if a larger bound has exactly top_k keys, the one below that bound.
  // Either way the picks are all keys above it and, in order, as many that equal it as are left.
  __device__ __forceinline__ uint32_t least(Shared& shared) const {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    uint32_t found = 0;  // its high bits
    // At least top_k keys reach `found` and fewer reach what follows it at the bits that are known: the sought integer
    // begins with them.
#pragma unroll 1
    for (int shift = 30; shift >= 0; shift -= 2) {
      const uint32_t lower = found | 1u << shift, middle = found | 2u << shift, upper = found | 3u << shift;
      unsigned counts = 0;
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (i >= per_lane) break;
        counts += (of[i] >= lower ? 1u : 0u) + (of[i] >= middle ? 1u << 10 : 0u) + (of[i] >= upper ? 1u << 20 : 0u);
      }
      counts = __reduce_add_sync(~0u, counts);
      // Alternating words: a warp may be a turn ahead of one that still reads.
      unsigned* of_warp = shared.of_warp[shift / 2 % 2];
      if (lane == 0) of_warp[warp] = counts;
      __syncthreads();
      // Every warp adds the counts of all, so nobody has to wait for a total: a block's need 16 bits each.
      counts = lane < kWarps ? of_warp[lane] : 0;
      const unsigned low = __reduce_add_sync(~0u, (counts & 0x3FFu) | (counts >> 10 & 0x3FFu) << 16);
      const unsigned reach_lower = low & 0xFFFFu, reach_middle = low >> 16;
      const unsigned reach_upper = __reduce_add_sync(~0u, counts >> 20);
      const unsigned digit = (reach_lower >= Config::kTopK ? 1 : 0) + (reach_middle >= Config::kTopK ? 1 : 0) +
                             (reach_upper >= Config::kTopK ? 1 : 0);
      found |= digit << shift;
      const unsigned reach = digit == 3 ? reach_upper : digit == 2 ? reach_middle : reach_lower;
      if (digit > 0 && reach == Config::kTopK) return found - 1;
    }
    return found;
  }

  // Writes all entries above `least` and the first that equal it, in ascending order.
  __device__ __forceinline__ void write(int* picks, Shared& shared, uint32_t least) const {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    unsigned own = 0;  // keys of the warp that are greater, and equal ones from bit 16 on
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (i >= per_lane) break;
      own += __popc(__ballot_sync(~0u, of[i] > least)) + (__popc(__ballot_sync(~0u, of[i] == least)) << 16);
    }
    // The search may have ended with either of the alternating words.
    __syncthreads();  // nobody reads its counts any more
    if (lane == 0) shared.of_warp[0][warp] = own;
    __syncthreads();
    const unsigned other = lane < kWarps ? shared.of_warp[0][lane] : 0;
    const unsigned n_equal = Config::kTopK - __reduce_add_sync(~0u, other & 0xFFFFu);
    const unsigned before = __reduce_add_sync(~0u, lane < warp ? other : 0);
    const unsigned below = (1u << lane) - 1;
    unsigned greater = before & 0xFFFFu;  // entries before the current ones
    unsigned equal = before >> 16;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (i >= per_lane) break;
      const unsigned are_greater = __ballot_sync(~0u, of[i] > least);
      const unsigned are_equal = __ballot_sync(~0u, of[i] == least);
      const unsigned greater_before = greater + __popc(are_greater & below);
      const unsigned equal_before = equal + __popc(are_equal & below);
      if (of[i] > least || (of[i] == least && equal_before < n_equal)) {
        picks[greater_before + (equal_before < n_equal ? equal_before : n_equal)] = first + i * 32;
      }
      greater += __popc(are_greater);
      equal += __popc(are_equal);
    }
  }
};

extern "C" __global__ void __launch_bounds__(Config::kThreads, 1)
    top_k(const float* scores, const int* positions, int* picks, const int* m_on_device, int m, int capacity) {
  __shared__ Shared shared;
  launch_dependents();
  const int token = blockIdx.x;
  const bool is_there = token < actual_tokens(m_on_device, m);
  const int position = is_there ? of_step(positions, token) : 0;
  wait_for_dependency();
  if (!is_there) return;
  const int n = smaller((position + 1) / Config::kRatio, capacity);
  picks += int64_t{token} * Config::kTopK;
  scores += int64_t{token} * capacity;
  if (n <= Config::kTopK) {
    for (int i = threadIdx.x; i < Config::kTopK; i += Config::kThreads) picks[i] = i < n ? i : -1;
    return;
  }
  if (n <= kHeld * Config::kThreads) {
    Held keys;
    keys.load(scores, n);
    keys.write(picks, shared, keys.least(shared));
    return;
  }
  if (threadIdx.x == 0) shared.n_left = Config::kTopK;
  __syncthreads();
  uint32_t least = 0;
  find_digit(shared, scores, n, least, 21, 11);
  least |= shared.digit << 21;
  find_digit(shared, scores, n, least, 10, 11);
  least |= shared.digit << 10;
  find_digit(shared, scores, n, least, 0, 10);
  least |= shared.digit;
  write_picks(picks, shared, scores, n, least, shared.n_left);
}
