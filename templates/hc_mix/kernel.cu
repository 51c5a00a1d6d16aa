$#-
  op: src/kernels/runner/streams.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/hc_mix for ${ arch.name }$. Do not edit.
//
// hc_mix: closes a sublayer, h'[k] = post[k] * (y0 + y1) + sum_j C[j][k] * h[j], and starts the next with parts of
// fn . h' and of h' . h', where h' is concatenated over the streams and taken as stored.
//
//   operand      shape                 in memory               written / read
//   streams_in   [m, 4, hidden]        Element, row-major      read
//   y0, y1       [m, hidden]           BF16; y1 may be null    read with kHasPost
//   mix_prev     [m, 20]               f32, post[4] C[4][4]    read with kHasPost
//   fn           [kRows, 4 * hidden]   f32, row-major          read, before the launch ahead has ended
//   streams_out  [m, 4, hidden]        as streams_in, or it    written with kHasPost
//   partials     [splits, m, kRows + 1] f32                    written: a part of each sum for each slice of columns
//
//   block = kWarps warps on kSlice columns of all four streams; grid = (slices, groups of tokens)
//   one token at a time (kTokens = 1): a lane has one column and keeps its 4 * kRows weights in registers; warps take
//     tokens in turn. The weights are most of the bytes, and they come while the launch ahead still runs.
//   kTokens at a time: a lane has two columns of each chunk of 64; each weight, from L1, serves all tokens of the warp.
//
// A thread reads and writes the same columns of the same tokens, so the streams may be mixed in place.
// Exactness: FMA in f32, columns ascending in a lane, then a butterfly over lanes: the same bits in every run.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"
#include "lib/lanes.cuh"

using Element = ${ op.element }$;

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
  static constexpr int kRows = ${ op.rows }$;
  static constexpr bool kHasPost = ${ op.has_post }$;
  static constexpr int kSlice = ${ op.slice }$;    // columns of a block
  static constexpr int kTokens = ${ op.tokens }$;  // of a warp at a time
  static constexpr int kWarps = ${ op.warps }$;
};

constexpr int kSums = Config::kRows + 1;  // the last is that of squares
constexpr int kColumns = Config::kTokens == 1 ? 1 : 2;  // of a lane
static_assert(Config::kHidden % Config::kSlice == 0 && Config::kSlice % (32 * kColumns) == 0, "slices are whole");
static_assert(Config::kTokens > 1 || Config::kSlice == 32, "weights in registers are those of one column");

struct Operands {
  const Element* streams_in;
  const bf16* y0;
  const bf16* y1;
  const float* mix_prev;
  Element* streams_out;
};

// The streams of one token at this lane's columns: as they are, or mixed, stored and as stored.
__device__ __forceinline__ void read_streams(float (&h)[4][kColumns], const Operands& operands, int token, int column) {
  const int64_t place = int64_t{token} * 4 * Config::kHidden + column;
#pragma unroll
  for (int j = 0; j < 4; ++j) load_few(h[j], operands.streams_in + place + j * Config::kHidden);
  if constexpr (Config::kHasPost) {
    // All lanes read the same twenty values: one transaction each, from L1 but for the first time.
    const float4* mix = reinterpret_cast<const float4*>(operands.mix_prev + int64_t{token} * 20);
    float y[kColumns];
    load_few(y, operands.y0 + int64_t{token} * Config::kHidden + column);
    if (operands.y1 != nullptr) {
      float shared[kColumns];
      load_few(shared, operands.y1 + int64_t{token} * Config::kHidden + column);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) y[c] += shared[c];
    }
    const float4 post = mix[0];
    float mixed[4][kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      mixed[0][c] = post.x * y[c];
      mixed[1][c] = post.y * y[c];
      mixed[2][c] = post.z * y[c];
      mixed[3][c] = post.w * y[c];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 row = mix[1 + j];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        mixed[0][c] = __fmaf_rn(row.x, h[j][c], mixed[0][c]);
        mixed[1][c] = __fmaf_rn(row.y, h[j][c], mixed[1][c]);
        mixed[2][c] = __fmaf_rn(row.z, h[j][c], mixed[2][c]);
        mixed[3][c] = __fmaf_rn(row.w, h[j][c], mixed[3][c]);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      store_few(operands.streams_out + place + k * Config::kHidden, mixed[k]);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) h[k][c] = mixed[k][c];
    }
  }
}

// Sums over the lanes and leaves this slice's part of one token.
__device__ __forceinline__ void store_part(float (&sums)[32], float* partials, int token, int m, int lane) {
  const float sum = spread_sums(sums, lane);
  if (lane < kSums) partials[(int64_t{blockIdx.x} * m + token) * kSums + lane] = sum;
}

// All warps of the slice take tokens in turn, each with its weights in registers. How many there are changes no bits.
__device__ __forceinline__ void mix_one_by_one(const Operands& operands, const float* fn, float* partials,
                                               const int* m_on_device, int m) {
  const int lane = threadIdx.x % 32;
  const int column = blockIdx.x * Config::kSlice + lane;
  // No kernel writes `fn`, so it may be read before the launch ahead has ended: these loads, most of the bytes of a
  // short step, wait for nothing.
  float weights[4][Config::kRows];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int row = 0; row < Config::kRows; ++row) weights[j][row] = fn[(row * 4 + j) * Config::kHidden + column];
  }
  wait_for_dependency();
  const int n_tokens = actual_tokens(m_on_device, m);
  const int first = blockIdx.y * Config::kWarps + threadIdx.x / 32;
  for (int token = first; token < n_tokens; token += gridDim.y * Config::kWarps) {
    float h[4][kColumns];
    read_streams(h, operands, token, column);
    float sums[32] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int row = 0; row < Config::kRows; ++row) sums[row] = __fmaf_rn(weights[j][row], h[j][0], sums[row]);
      sums[Config::kRows] = __fmaf_rn(h[j][0], h[j][0], sums[Config::kRows]);
    }
    store_part(sums, partials, token, m, lane);
  }
}

// Each warp has kTokens tokens and walks the slice with all of them.
__device__ __forceinline__ void mix_together(const Operands& operands, const float* fn, float* partials,
                                             const int* m_on_device, int m) {
  constexpr int kTokens = Config::kTokens;
  wait_for_dependency();
  const int lane = threadIdx.x % 32;
  const int first = (blockIdx.y * Config::kWarps + threadIdx.x / 32) * kTokens;
  const int n_tokens = actual_tokens(m_on_device, m) - first;
  if (n_tokens <= 0) return;
  float sums[kTokens][kSums] = {};
  // Not unrolled: the registers are those of one chunk, and other warps fill the time of its loads.
#pragma unroll 1
  for (int chunk = 0; chunk < Config::kSlice; chunk += 32 * kColumns) {
    const int column = blockIdx.x * Config::kSlice + chunk + lane * kColumns;
    // Tokens that are not there count as zeros; their sums are not stored.
    float h[kTokens][4][kColumns] = {};
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t < n_tokens) read_streams(h[t], operands, first + t, column);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int row = 0; row < Config::kRows; ++row) {
        float weight[kColumns];
        load_few(weight, fn + (row * 4 + j) * Config::kHidden + column);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c) sums[t][row] = __fmaf_rn(weight[c], h[t][j][c], sums[t][row]);
        }
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          sums[t][Config::kRows] = __fmaf_rn(h[t][j][c], h[t][j][c], sums[t][Config::kRows]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    float padded[32] = {};
#pragma unroll
    for (int i = 0; i < kSums; ++i) padded[i] = sums[t][i];
    if (t < n_tokens) store_part(padded, partials, first + t, m, lane);
  }
}

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32)
    hc_mix(const Element* streams_in, const bf16* y0, const bf16* y1, const float* mix_prev, const float* fn,
           Element* streams_out, float* partials, const int* m_on_device, int m) {
  launch_dependents();
  const Operands operands{streams_in, y0, y1, mix_prev, streams_out};
  if constexpr (Config::kTokens == 1) {
    mix_one_by_one(operands, fn, partials, m_on_device, m);
  } else {
    mix_together(operands, fn, partials, m_on_device, m);
  }
}
