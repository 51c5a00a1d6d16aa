#line 4 "templates/hc_mix_mma/kernel.cu"
// Generated from templates/hc_mix_mma for sm90a. Do not edit.
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
#line 1 "templates/lib/words.cuh"
// Machine words and the small arithmetic of every kernel: names that NVRTC does not bring along without headers.

using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

// The bits of a BF16 value.
using bf16 = uint16_t;

__device__ __forceinline__ float float_of(bf16 value) { return __uint_as_float(uint32_t{value} << 16); }

// Address of shared memory as the 32-bit number that PTX takes.
__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__host__ __device__ constexpr int ceil_divide(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return ceil_divide(a, b) * b; }
__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int larger(int a, int b) { return a > b ? a : b; }
#line 39 "templates/hc_mix_mma/kernel.cu"
#line 1 "templates/arch/sm90a/bf16.cuh"
// BF16 arithmetic and conversion, each with one rounding.

// mul.rn.bf16x2: the product of two pairs; subnormal operands are not flushed.
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// cvt.rn.bf16x2.f32: two floats to one pair, `low` in the low half.
__device__ __forceinline__ uint32_t pair_from_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// cvt.rn.bf16.f32: one float to the bits of a BF16.
__device__ __forceinline__ uint16_t bf16_from_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#line 40 "templates/hc_mix_mma/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 41 "templates/hc_mix_mma/kernel.cu"
#line 1 "templates/arch/sm80/matrix.cuh"
// Warp-level matrix instructions. Fragments: lane = 4 * g + c; see lib/format.cuh for the operands they are made of.

// ldmatrix.x4: four 8x8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&to)[4], uint32_t smem_from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(smem_from)
               : "memory");
}

// mma.sync m16n8k16: d += a (16 x 16, BF16) * b (16 x 8, BF16), f32 sums.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#line 42 "templates/hc_mix_mma/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 43 "templates/hc_mix_mma/kernel.cu"
#line 1 "templates/lib/elements.cuh"
// Neighbouring elements of a row as f32, and back with one rounding each: BF16 or f32 behind one name.

__device__ __forceinline__ float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(uint32_t pair) { return __uint_as_float(pair & 0xFFFF0000u); }

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// Magnitude for an amax, in which what is not finite takes no part.
__device__ __forceinline__ float finite_magnitude(float x) { return is_finite(x) ? fabsf(x) : 0.0f; }

// A quiet NaN: what stands where there is no value to give.
__device__ __forceinline__ float no_value() { return __int_as_float(0x7FC00000); }

// Eight elements, 16-byte aligned.
__device__ __forceinline__ void load_eight(float (&to)[8], const bf16* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  to[0] = low_float(words.x);
  to[1] = high_float(words.x);
  to[2] = low_float(words.y);
  to[3] = high_float(words.y);
  to[4] = low_float(words.z);
  to[5] = high_float(words.z);
  to[6] = low_float(words.w);
  to[7] = high_float(words.w);
}

__device__ __forceinline__ void load_eight(float (&to)[8], const float* from) {
  const float4 first = reinterpret_cast<const float4*>(from)[0];
  const float4 second = reinterpret_cast<const float4*>(from)[1];
  to[0] = first.x;
  to[1] = first.y;
  to[2] = first.z;
  to[3] = first.w;
  to[4] = second.x;
  to[5] = second.y;
  to[6] = second.z;
  to[7] = second.w;
}

__device__ __forceinline__ void store_eight(bf16* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(pair_from_floats(from[0], from[1]), pair_from_floats(from[2], from[3]),
                                             pair_from_floats(from[4], from[5]), pair_from_floats(from[6], from[7]));
}

__device__ __forceinline__ void store_eight(float* to, const float (&from)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

// One or two elements, aligned to their size together.
__device__ __forceinline__ void load_few(float (&to)[1], const bf16* from) { to[0] = float_of(*from); }
__device__ __forceinline__ void load_few(float (&to)[1], const float* from) { to[0] = *from; }

__device__ __forceinline__ void load_few(float (&to)[2], const bf16* from) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(from);
  to[0] = low_float(pair);
  to[1] = high_float(pair);
}

__device__ __forceinline__ void load_few(float (&to)[2], const float* from) {
  const float2 pair = *reinterpret_cast<const float2*>(from);
  to[0] = pair.x;
  to[1] = pair.y;
}

// Stores elements and leaves in `values` what was stored.
__device__ __forceinline__ void store_few(bf16* to, float (&values)[1]) {
  *to = bf16_from_float(values[0]);
  values[0] = float_of(bf16_from_float(values[0]));
}

__device__ __forceinline__ void store_few(float* to, float (&values)[1]) { *to = values[0]; }

__device__ __forceinline__ void store_few(bf16* to, float (&values)[2]) {
  const uint32_t pair = pair_from_floats(values[0], values[1]);
  *reinterpret_cast<uint32_t*>(to) = pair;
  values[0] = low_float(pair);
  values[1] = high_float(pair);
}

__device__ __forceinline__ void store_few(float* to, float (&values)[2]) {
  *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
}
#line 44 "templates/hc_mix_mma/kernel.cu"

using Element = float;

struct Config {
  static constexpr int kHidden = 4096;
  static constexpr int kRows = 24;
  static constexpr bool kHasPost = true;
  static constexpr int kSlice = 128;  // columns of a block
  static constexpr int kWarps = 8;
  static constexpr int kBlocksPerSm = 1;
  static constexpr int kSmemBytes = 73728;
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
