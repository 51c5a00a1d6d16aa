$#-
  op: src/kernels/hc_mix_mma.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/hc_mix_mma for ${ arch.name }$. Do not edit.
//
// hc_mix_mma: hc_mix for many tokens on BF16 tensor cores: h'[k] = post[k] * (y0 + y1) + sum_j C[j][k] * h[j], parts of
// fn . h' and of h' . h', where h' is concatenated over the streams and taken as stored.
//
//   operand      shape                  in memory               written / read
//   streams_in   [m, 4, hidden]         Element, row-major      read
//   y0, y1       [m, hidden]            BF16; y1 may be null    read with kHasPost
//   mix_prev     [m, 20]                f32, post[4] C[4][4]    read with kHasPost
//   fn           [kRows, 4 * hidden]    f32, row-major          read before the launch ahead has ended
//   streams_out  [m, 4, hidden]         as streams_in, or it    written with kHasPost
//   partials     [splits, m, kRows + 1] f32                     written: a part of each sum for each slice of columns
//
//   block = kWarps warps on kSlice columns of all four streams; grid = (slices, groups of blocks), and the blocks of a
//   slice take 16 * kWarps tokens in turn, a warp 16 of them
//
//   An f32 weight is the sum of three BF16 numbers, to the last bit but for the smallest; so is an f32 stream, and a
//   BF16 stream is one. Products of parts are exact, and those below 2^-24 of the largest are left out: three mma for
//   16 BF16 values of 16 tokens and eight rows of fn, six for f32. The weights' parts are made once a block and stay in
//   shared memory, in the order of fragments. Streams go from memory to fragments without a stop: nobody waits at a
//   barrier behind the first, and what is on its way are twelve times 16 bytes a lane.
//
//   lane = 4 * g + c has tokens g and g + 8 of a chunk of 32 columns, and of these two fours, each the k of one mma
//   (any order will do: fn has the same). Four lanes read 64 bytes side by side:
//
//   BF16   columns 8 c + 0 to 3 and 8 c + 4 to 7        f32   columns 4 c + 0 to 3 and 16 + 4 c + 0 to 3
//
//   barrier  arrivals     announces
//   0        all threads  (__syncthreads) the weights' parts are in shared memory
//
// A thread reads and writes the same columns of the same tokens, so the streams may be mixed in place.
// Exactness: mixes by FMA in f32; sums in f32 as mma.sync makes them, chunks ascending, streams, parts; the same bits
// in every run and for every number of warps and groups.
// After: three BF16 parts of an f32 operand are the idea of cuBLAS's BF16x9 and of Henry, Tang and Heinecke (2019).
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "arch/matrix.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"

using Element = ${ op.element }$;

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
  static constexpr int kRows = ${ op.rows }$;
  static constexpr bool kHasPost = ${ op.has_post }$;
  static constexpr int kSlice = ${ op.slice }$;  // columns of a block
  static constexpr int kWarps = ${ op.warps }$;
  static constexpr int kBlocksPerSm = ${ op.blocks_per_sm }$;
  static constexpr int kSmemBytes = ${ op.smem_bytes }$;
};

constexpr int kSums = Config::kRows + 1;  // the last is that of squares
constexpr int kThreads = Config::kWarps * 32;
constexpr int kChunk = 32;
constexpr int kChunks = Config::kSlice / kChunk;
constexpr int kRowTiles = ceil_divide(Config::kRows, 8);
constexpr int kParts = 3;                                  // BF16 numbers of an f32 one
constexpr bool kIsBf16 = sizeof(Element) == 2;
constexpr int kStreamParts = kIsBf16 ? 1 : kParts;
// Columns from a lane's first four to the next lane's, and to its second four.
constexpr int kLaneStep = kIsBf16 ? 8 : 4;
constexpr int kSecondFour = kIsBf16 ? 4 : 16;
static_assert(Config::kHidden % Config::kSlice == 0 && Config::kSlice % kChunk == 0, "slices are whole");

// Weights of one mma for each part: a lane's four columns of one row, as two pairs.
struct WeightParts {
  uint2 pairs[kParts][32];
};

struct Shared {
  WeightParts weights[kChunks][4][2][kRowTiles];  // [chunk][stream][first or second][rows of fn]
};
static_assert(sizeof(Shared) == Config::kSmemBytes, "host and device disagree on shared memory");

struct Operands {
  const Element* streams_in;
  const bf16* y0;
  const bf16* y1;
  const float* mix_prev;
  Element* streams_out;
};

// The largest BF16 parts of two values, which keep what is left.
__device__ __forceinline__ uint32_t take_parts(float& first, float& second) {
  const uint32_t pair = pair_from_floats(first, second);
  first -= low_float(pair);
  second -= high_float(pair);
  return pair;
}

// Parts of the block's weights. A row beyond kRows is zero.
__device__ __forceinline__ void put_weights(Shared& shared, const float* fn) {
  WeightParts* all = &shared.weights[0][0][0][0];
  for (int i = threadIdx.x; i < kChunks * 8 * kRowTiles * 32; i += kThreads) {
    const int lane = i % 32, fragment = i / 32;
    const int row = fragment % kRowTiles * 8 + lane / 4;
    const int half = fragment / kRowTiles % 2, stream = fragment / kRowTiles / 2 % 4, chunk = fragment / kRowTiles / 8;
    const int four = lane % 4 * kLaneStep + half * kSecondFour;
    const int column = blockIdx.x * Config::kSlice + chunk * kChunk + four;
    float4 left = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row < Config::kRows) {
      left = *reinterpret_cast<const float4*>(fn + (int64_t{row} * 4 + stream) * Config::kHidden + column);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint32_t low = take_parts(left.x, left.y);
      all[fragment].pairs[part][lane] = make_uint2(low, take_parts(left.z, left.w));
    }
  }
}

// A lane's columns of one token in all streams, and what the sublayer gave.
struct Columns {
  float h[4][8];
  float y[8];

  // Two fours of a row: BF16 beside each other, or apart.
  __device__ __forceinline__ static void load_row(float (&to)[8], const float* from) {
    unpack(to, 0, reinterpret_cast<const uint4*>(from)[0]);
    unpack(to, 4, reinterpret_cast<const uint4*>(from + kSecondFour)[0]);
  }
  __device__ __forceinline__ static void load_row(float (&to)[8], const bf16* from) {
    if constexpr (kIsBf16) {
      load_eight(to, from);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        const uint2 pairs = *reinterpret_cast<const uint2*>(from + i / 4 * kSecondFour);
        to[i] = low_float(pairs.x);
        to[i + 1] = high_float(pairs.x);
        to[i + 2] = low_float(pairs.y);
        to[i + 3] = high_float(pairs.y);
      }
    }
  }
  __device__ __forceinline__ static void unpack(float (&to)[8], int at, const uint4& words) {
    to[at] = __uint_as_float(words.x);
    to[at + 1] = __uint_as_float(words.y);
    to[at + 2] = __uint_as_float(words.z);
    to[at + 3] = __uint_as_float(words.w);
  }

  __device__ __forceinline__ void load(const Operands& operands, int token, int column) {
    const Element* from = operands.streams_in + int64_t{token} * 4 * Config::kHidden + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) load_row(h[j], from + j * Config::kHidden);
    if constexpr (Config::kHasPost) {
      load_row(y, operands.y0 + int64_t{token} * Config::kHidden + column);
      if (operands.y1 != nullptr) {
        float more[8];
        load_row(more, operands.y1 + int64_t{token} * Config::kHidden + column);
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] += more[i];
      }
    }
  }

  // Mixes the streams.
  __device__ __forceinline__ void mix(const Operands& operands, int token) {
    // Lanes of a token read the same twenty values, from L1 but for the first time.
    const float4* values = reinterpret_cast<const float4*>(operands.mix_prev + int64_t{token} * 20);
    const float4 post = values[0];
    const float4 rows[4] = {values[1], values[2], values[3], values[4]};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float mixed[4] = {post.x * y[i], post.y * y[i], post.z * y[i], post.w * y[i]};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        mixed[0] = __fmaf_rn(rows[j].x, h[j][i], mixed[0]);
        mixed[1] = __fmaf_rn(rows[j].y, h[j][i], mixed[1]);
        mixed[2] = __fmaf_rn(rows[j].z, h[j][i], mixed[2]);
        mixed[3] = __fmaf_rn(rows[j].w, h[j][i], mixed[3]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) h[j][i] = mixed[j];
    }
  }
};

// The same as they are stored: words of BF16 pairs, or of f32.
struct Stored {
  static constexpr int kWords = sizeof(Element) * 2;
  uint32_t words[4][kWords];

  __device__ __forceinline__ void hold(const Columns& columns) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        words[j][i] = kIsBf16 ? pair_from_floats(columns.h[j][2 * i % 8], columns.h[j][(2 * i + 1) % 8])
                              : __float_as_uint(columns.h[j][i]);
      }
    }
  }

  __device__ __forceinline__ void store(Element* streams, int token, int column) const {
    Element* to = streams + int64_t{token} * 4 * Config::kHidden + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        uint4* row = reinterpret_cast<uint4*>(to + j * Config::kHidden + i / 4 * kSecondFour);
        *row = make_uint4(words[j][i], words[j][i + 1], words[j][i + 2], words[j][i + 3]);
      }
    }
  }

  __device__ __forceinline__ float squares() const {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const uint32_t word = words[j][i];
        const float value = kIsBf16 ? low_float(word) : __uint_as_float(word);
        sum = __fmaf_rn(value, value, sum);
        if constexpr (kIsBf16) sum = __fmaf_rn(high_float(word), high_float(word), sum);
      }
    }
    return sum;
  }

  // Four pairs of one stream's columns for each of its parts.
  __device__ __forceinline__ void split(uint32_t (&pairs)[kStreamParts][4], int j) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kIsBf16) {
        pairs[0][i] = words[j][i];
      } else {
        float first = __uint_as_float(words[j][2 * i % kWords]);
        float second = __uint_as_float(words[j][(2 * i + 1) % kWords]);
#pragma unroll
        for (int part = 0; part < kStreamParts; ++part) pairs[part][i] = take_parts(first, second);
      }
    }
  }
};

// Sums of a warp's sixteen tokens.
struct Sums {
  float products[kRowTiles][4];  // of fragment D: (row 2 c, 2 c + 1 of token g), (the same of token g + 8)
  float squares[2];

  // Adds the products of stream `j` of both tokens with the weights of the chunk.
  __device__ __forceinline__ void add(const Stored (&stored)[2], int j, const WeightParts (&weights)[2][kRowTiles],
                                      int lane) {
    uint32_t upper[kStreamParts][4], lower[kStreamParts][4];
    stored[0].split(upper, j);
    stored[1].split(lower, j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Small products first; one row tile after the other, so that neighbours do not wait for each other.
#pragma unroll
      for (int of_weight = kParts - 1; of_weight >= 0; --of_weight) {
        uint2 pairs[kRowTiles];
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) pairs[tile] = weights[half][tile].pairs[of_weight][lane];
#pragma unroll
        for (int part = smaller(kStreamParts, kParts - of_weight) - 1; part >= 0; --part) {
          const uint32_t a[4] = {upper[part][2 * half], lower[part][2 * half], upper[part][2 * half + 1],
                                 lower[part][2 * half + 1]};
#pragma unroll
          for (int tile = 0; tile < kRowTiles; ++tile) multiply_add(products[tile], a, pairs[tile].x, pairs[tile].y);
        }
      }
    }
  }

  // Leaves this slice's parts of the tokens from `first` on.
  __device__ __forceinline__ void store(float* partials, int first, int n_tokens, int m, int lane) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = squares[half];
      all += __shfl_xor_sync(~0u, all, 1);
      all += __shfl_xor_sync(~0u, all, 2);
      const int token = first + lane / 4 + half * 8;
      if (token >= n_tokens) continue;
      float* to = partials + (int64_t{blockIdx.x} * m + token) * kSums;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const int row = tile * 8 + lane % 4 * 2;
        if (row >= Config::kRows) continue;
        to[row] = products[tile][2 * half];
        to[row + 1] = products[tile][2 * half + 1];
      }
      if (lane % 4 == 0) to[Config::kRows] = all;
    }
  }
};

// A warp's tokens from `first` on: all columns of the slice. Tokens that are not there are zeros.
__device__ __forceinline__ void mix_tokens(const Operands& operands, const Shared& shared, float* partials, int first,
                                           int n_tokens, int m, int lane) {
  Sums sums = {};
#pragma unroll 1
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    const int column = blockIdx.x * Config::kSlice + chunk * kChunk + lane % 4 * kLaneStep;
    Columns columns[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first + lane / 4 + half * 8;
      if (token < n_tokens) columns[half].load(operands, token, column);
    }
    Stored stored[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = first + lane / 4 + half * 8;
      const bool is_there = token < n_tokens;
      if (Config::kHasPost && is_there) columns[half].mix(operands, token);
      stored[half].hold(columns[half]);
      if (Config::kHasPost && is_there) stored[half].store(operands.streams_out, token, column);
      sums.squares[half] += stored[half].squares();
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.add(stored, j, shared.weights[chunk][j], lane);
  }
  sums.store(partials, first, n_tokens, m, lane);
}

extern "C" __global__ void __launch_bounds__(kThreads, Config::kBlocksPerSm)
    hc_mix_mma(const Element* streams_in, const bf16* y0, const bf16* y1, const float* mix_prev, const float* fn,
               Element* streams_out, float* partials, const int* m_on_device, int m) {
  extern __shared__ __align__(16) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  launch_dependents();
  const Operands operands{streams_in, y0, y1, mix_prev, streams_out};
  put_weights(shared, fn);
  __syncthreads();
  wait_for_dependency();
  const int n_tokens = actual_tokens(m_on_device, m);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int first = (blockIdx.y * Config::kWarps + warp) * 16; first < n_tokens; first += gridDim.y * kThreads / 2) {
    mix_tokens(operands, shared, partials, first, n_tokens, m, lane);
  }
}
