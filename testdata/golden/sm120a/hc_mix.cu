#line 4 "templates/hc_mix/kernel.cu"
// Generated from templates/hc_mix for sm120a. Do not edit.
//
// hc_mix: closes a sublayer, h'[k] = post[k] * (y0 + y1) + sum_j C[j][k] * h[j], and starts the next with parts of
// fn . h' and of h' . h', where h' is concatenated over the streams and taken as stored.
//
//   operand      shape                 in memory               written / read
//   streams_in   [m, 4, hidden]        Element, row-major      read
//   y0, y1       [m, hidden]           BF16; y1 may be null    read with kHasPost
//   mix_prev     [m, 20]               f32, post[4] C[4][4]    read with kHasPost
//   fn           [kRows, 4 * hidden]   f32, row-major          read, at first before the launch ahead has ended
//   streams_out  [m, 4, hidden]        as streams_in, or it    written with kHasPost
//   partials     [splits, m, kRows + 1] f32                    written: a part of each sum for each slice of columns
//
//   block = kWarps warps on kSlice columns of all four streams; grid = (slices, groups of tokens)
//
//   one token at a time (kTokens = 1): a lane has one column and keeps its 4 * kRows weights in registers; warps take
//     tokens in turn. The weights are most of the bytes, and they come while the launch ahead still runs.
//
//   kTokens = 64 at a time, in chunks of 32 columns: the threads mix quads of columns, store them and put them into
//     shared memory; then a lane sums two tokens over its warp's eight columns. There a weight is the same for all
//     lanes and serves 64 tokens: one read of shared memory brings four weights for 256 FMAs. With a column to a lane
//     the weights of four tokens took more of the time than their streams.
//
//       barrier | put weights | twice: load quads, mix, store, put | barrier | sum | load the next weights
//
//     Three or four blocks share an SM: while some sum, the others' streams are on their way.
//
// A thread reads and writes the same columns of the same tokens, so the streams may be mixed in place.
// Exactness: FMA in f32, in a lane chunks ascending, in a chunk streams, in a stream columns. Then a butterfly over
// lanes, or the warps in ascending order: the same bits in every run, whatever else the step holds.
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
#line 35 "templates/hc_mix/kernel.cu"
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
#line 36 "templates/hc_mix/kernel.cu"
#line 1 "templates/arch/sm90a/dependent.cuh"
// Programmatic dependent launch: a grid may start before the one ahead of it in the stream has ended.

constexpr bool kHasDependentLaunch = true;

// griddepcontrol.launch_dependents: this block no longer holds back the start of the next grid.
__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// griddepcontrol.wait: returns when the grids that this one has edges from have ended and their writes are visible.
// Before it a kernel writes nothing, and reads what no kernel writes, or what an earlier grid has written for certain;
// every thread executes it before it exits, or the chain breaks.
__device__ __forceinline__ void wait_for_dependency() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
#line 37 "templates/hc_mix/kernel.cu"
#line 1 "templates/lib/bucket.cuh"
// Grids are built for a bucket of tokens; how many there really are is data.

// Tokens of this launch: what the device says, never more than the grid was built for. Past the L1: a kernel that knows
// it to be written may ask before it waits.
__device__ __forceinline__ int actual_tokens(const int* m_on_device, int m_capacity) {
  return m_on_device == nullptr ? m_capacity : smaller(__ldcg(m_on_device), m_capacity);
}
#line 38 "templates/hc_mix/kernel.cu"
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
#line 39 "templates/hc_mix/kernel.cu"
#line 1 "templates/lib/lanes.cuh"
// Sums over the lanes of a warp and the warps of a block, in an order that never changes.

// The sum over all lanes, the same bits in each: a butterfly adds the same pairs on both sides.
__device__ __forceinline__ float lane_sum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// The largest over `width` neighbouring lanes, a power of two. A NaN takes no part.
__device__ __forceinline__ float lane_maximum(float value, int width) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    if (step < width) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  }
  return value;
}

// One step of spread_sums and those after it: as a template, for only constant places of `values` stay in registers.
template <int kWidth>
__device__ __forceinline__ void spread_step(float (&values)[32], int lane) {
  const bool is_upper = (lane & kWidth) != 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float kept = is_upper ? values[i + kWidth] : values[i];
    const float given = is_upper ? values[i] : values[i + kWidth];
    values[i] = kept + __shfl_xor_sync(~0u, given, kWidth);
  }
  if constexpr (kWidth > 1) spread_step<kWidth / 2>(values, lane);
}

// Sums 32 values over the lanes at once; lane i gets the sum of value i. In each step a lane gives away the half of its
// values that the other one keeps: 31 shuffles in place of 160.
__device__ __forceinline__ float spread_sums(float (&values)[32], int lane) {
  spread_step<16>(values, lane);
  return values[0];
}

// The sum over the threads of `n_warps` warps, warp by warp in ascending order; `sync` joins them. `shared` has a float
// for each of them.
template <class Sync>
__device__ __forceinline__ float thread_sum(float value, float* shared, int n_warps, Sync sync) {
  value = lane_sum(value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  sync();
  float sum = 0.0f;
  for (int warp = 0; warp < n_warps; ++warp) sum += shared[warp];
  return sum;
}
#line 40 "templates/hc_mix/kernel.cu"

using Element = bf16;

struct Config {
  static constexpr int kHidden = 4096;
  static constexpr int kRows = 24;
  static constexpr bool kHasPost = true;
  static constexpr int kSlice = 32;    // columns of a block
  static constexpr int kTokens = 1;  // of a warp, or of a block, at a time
  static constexpr int kWarps = 1;
};

constexpr int kSums = Config::kRows + 1;  // the last is that of squares
// Blocks of an SM that there are to be registers for. Unpacking BF16 takes more of them, and so does the compiler when
// no mix keeps it from moving loads ahead.
constexpr int kBlocks = Config::kTokens == 1 ? 1 : Config::kHasPost && sizeof(Element) == 4 ? 4 : 3;
static_assert(Config::kHidden % Config::kSlice == 0 && Config::kSlice % 32 == 0, "slices are whole");
static_assert(Config::kTokens > 1 || Config::kSlice == 32, "weights in registers are those of one column");

struct Operands {
  const Element* streams_in;
  const bf16* y0;
  const bf16* y1;
  const float* mix_prev;
  Element* streams_out;
};

// Four elements, aligned to their size together.
__device__ __forceinline__ void load_few(float (&to)[4], const bf16* from) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(from);
  to[0] = low_float(pairs.x);
  to[1] = high_float(pairs.x);
  to[2] = low_float(pairs.y);
  to[3] = high_float(pairs.y);
}

__device__ __forceinline__ void load_few(float (&to)[4], const float* from) {
  const float4 values = *reinterpret_cast<const float4*>(from);
  to[0] = values.x;
  to[1] = values.y;
  to[2] = values.z;
  to[3] = values.w;
}

// Stores elements and leaves in `values` what was stored.
__device__ __forceinline__ void store_few(bf16* to, float (&values)[4]) {
  const uint2 pairs = make_uint2(pair_from_floats(values[0], values[1]), pair_from_floats(values[2], values[3]));
  *reinterpret_cast<uint2*>(to) = pairs;
  values[0] = low_float(pairs.x);
  values[1] = high_float(pairs.x);
  values[2] = low_float(pairs.y);
  values[3] = high_float(pairs.y);
}

__device__ __forceinline__ void store_few(float* to, float (&values)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
}

// Neighbouring columns of one token, in all streams.
template <int kColumns>
struct Columns {
  float h[4][kColumns];
  float y[kColumns];

  // Reads the streams and what the sublayer gave.
  __device__ __forceinline__ void load(const Operands& operands, int token, int column) {
    const Element* from = operands.streams_in + int64_t{token} * 4 * Config::kHidden + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) load_few(h[j], from + j * Config::kHidden);
    if constexpr (Config::kHasPost) {
      load_few(y, operands.y0 + int64_t{token} * Config::kHidden + column);
      if (operands.y1 != nullptr) {
        float more[kColumns];
        load_few(more, operands.y1 + int64_t{token} * Config::kHidden + column);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) y[c] += more[c];
      }
    }
  }

  // The streams as they are, or mixed, stored and as stored.
  __device__ __forceinline__ void mix(const Operands& operands, int token, int column) {
    if constexpr (Config::kHasPost) {
      // Lanes of a token read the same twenty values: one transaction each, from L1 but for the first time.
      const float4* values = reinterpret_cast<const float4*>(operands.mix_prev + int64_t{token} * 20);
      const float4 post = values[0];
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
        const float4 row = values[1 + j];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          mixed[0][c] = __fmaf_rn(row.x, h[j][c], mixed[0][c]);
          mixed[1][c] = __fmaf_rn(row.y, h[j][c], mixed[1][c]);
          mixed[2][c] = __fmaf_rn(row.z, h[j][c], mixed[2][c]);
          mixed[3][c] = __fmaf_rn(row.w, h[j][c], mixed[3][c]);
        }
      }
      Element* to = operands.streams_out + int64_t{token} * 4 * Config::kHidden + column;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        store_few(to + k * Config::kHidden, mixed[k]);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) h[k][c] = mixed[k][c];
      }
    }
  }
};

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
    Columns<1> columns;
    columns.load(operands, token, column);
    columns.mix(operands, token, column);
    const float(&h)[4][1] = columns.h;
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

constexpr int kChunk = 32;  // columns of a stream that are mixed and summed at a time
constexpr int kQuads = kChunk / 4;
constexpr int kThreads = Config::kWarps * 32;
constexpr int kQuadRows = Config::kRows / 4;  // groups of four rows of fn
// Floats from a token, or a column, to the next one: eight lanes that read or write 16 bytes each meet no bank twice.
constexpr int kTokenStride = 4 * kChunk + 4;
constexpr int kWeightStride = Config::kRows % 8 == 0 ? Config::kRows + 4 : Config::kRows;
constexpr int kQuadsOfThread = 64 * kQuads / kThreads;
constexpr int kColumnsOfWarp = kChunk / Config::kWarps;

struct Shared {
  float h[64 * kTokenStride];                  // [token][stream][column]; at the end sums [warp][token][kSums]
  float weights[4 * kChunk * kWeightStride];  // [stream][column][row]
};

// Weights of a chunk: a lane has a column, a warp a stream.
struct Weights {
  float4 of_rows[kQuadRows];

  __device__ __forceinline__ void load(const float* fn, int chunk_column) {
    fn += threadIdx.x / 32 * Config::kHidden + chunk_column + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kQuadRows; ++i) {
      of_rows[i].x = fn[16 * i * Config::kHidden];
      of_rows[i].y = fn[(16 * i + 4) * Config::kHidden];
      of_rows[i].z = fn[(16 * i + 8) * Config::kHidden];
      of_rows[i].w = fn[(16 * i + 12) * Config::kHidden];
    }
  }

  __device__ __forceinline__ void put(Shared& shared) const {
    float4* to = reinterpret_cast<float4*>(shared.weights + threadIdx.x * kWeightStride);
#pragma unroll
    for (int i = 0; i < kQuadRows; ++i) to[i] = of_rows[i];
  }
};

// Two of a thread's quads of a chunk.
struct QuadPair {
  Columns<4> quads[2];

  __device__ __forceinline__ static int token_of(int i) { return threadIdx.x / kQuads + i * (kThreads / kQuads); }
  __device__ __forceinline__ static int column() { return threadIdx.x % kQuads * 4; }

  __device__ __forceinline__ void load(const Operands& operands, int begin, int first, int n_tokens, int chunk_column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = token_of(begin + i);
      if (token < n_tokens) quads[i].load(operands, first + token, chunk_column + column());
    }
  }

  // Mixes them and puts them into shared memory. What stands there for tokens that are not there meets no other token.
  __device__ __forceinline__ void put(const Operands& operands, Shared& shared, int begin, int first, int n_tokens,
                                      int chunk_column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = token_of(begin + i);
      if (token >= n_tokens) continue;
      quads[i].mix(operands, first + token, chunk_column + column());
      float* to = shared.h + token * kTokenStride + column();
#pragma unroll
      for (int j = 0; j < 4; ++j) store_few(to + j * kChunk, quads[i].h[j]);
    }
  }
};

// Adds the products of a warp's columns of a chunk: lane l has tokens l and l + 32.
__device__ __forceinline__ void add_products(float (&sums)[2][kSums], const Shared& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Not unrolled: 200 FMAs are enough to fill the time of the loads.
#pragma unroll 1
  for (int j = 0; j < 4; ++j) {
#pragma unroll 1
    for (int quad = 0; quad < kColumnsOfWarp; quad += 4) {
      const int column = j * kChunk + warp * kColumnsOfWarp + quad;
      float h[2][4];
      load_few(h[0], shared.h + lane * kTokenStride + column);
      load_few(h[1], shared.h + (lane + 32) * kTokenStride + column);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float* weights = shared.weights + (column + c) * kWeightStride;
#pragma unroll
        for (int row = 0; row < Config::kRows; row += 4) {
          float weight[4];
          load_few(weight, weights + row);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            sums[0][row + i] = __fmaf_rn(weight[i], h[0][c], sums[0][row + i]);
            sums[1][row + i] = __fmaf_rn(weight[i], h[1][c], sums[1][row + i]);
          }
        }
        sums[0][Config::kRows] = __fmaf_rn(h[0][c], h[0][c], sums[0][Config::kRows]);
        sums[1][Config::kRows] = __fmaf_rn(h[1][c], h[1][c], sums[1][Config::kRows]);
      }
    }
  }
}

// Adds the sums of the warps and leaves this slice's parts of all tokens, which stand one after the other.
__device__ __forceinline__ void store_parts(const float (&sums)[2][kSums], Shared& shared, float* partials, int first,
                                            int n_tokens, int m) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // all warps are done with the last chunk
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    shared.h[(warp * 64 + lane) * kSums + i] = sums[0][i];
    shared.h[(warp * 64 + lane + 32) * kSums + i] = sums[1][i];
  }
  __syncthreads();
  partials += (int64_t{blockIdx.x} * m + first) * kSums;
  for (int i = threadIdx.x; i < n_tokens * kSums; i += kThreads) {
    float sum = 0.0f;
#pragma unroll
    for (int of_warp = 0; of_warp < Config::kWarps; ++of_warp) sum += shared.h[of_warp * 64 * kSums + i];
    partials[i] = sum;
  }
}

// The block walks its slice with all its tokens.
__device__ __forceinline__ void mix_together(const Operands& operands, const float* fn, float* partials,
                                             const int* m_on_device, int m) {
  constexpr bool kIsOne = Config::kTokens == 1;
  static_assert(Config::kWarps * 64 * kSums <= 64 * kTokenStride, "sums of all warps stand where the streams were");
  static_assert(kIsOne || (Config::kTokens == 64 && Config::kWarps == 4), "a warp to a stream, a lane to two tokens");
  __shared__ alignas(16) Shared shared;
  const int first = blockIdx.y * 64;
  int chunk_column = blockIdx.x * Config::kSlice;
  const int end = chunk_column + Config::kSlice;
  Weights weights;
  weights.load(fn, chunk_column);
  wait_for_dependency();
  const int n_tokens = smaller(64, actual_tokens(m_on_device, m) - first);
  if (n_tokens <= 0) return;
  float sums[2][kSums] = {};
#pragma unroll 1
  for (; chunk_column < end; chunk_column += kChunk) {
    __syncthreads();  // all warps are done with the chunk before
    weights.put(shared);
#pragma unroll 1
    for (int begin = 0; begin < kQuadsOfThread; begin += 2) {
      QuadPair pair;
      pair.load(operands, begin, first, n_tokens, chunk_column);
      pair.put(operands, shared, begin, first, n_tokens, chunk_column);
    }
    __syncthreads();
    add_products(sums, shared);
    // Behind the last chunk the same once more, without a condition: it would keep registers for the old ones.
    weights.load(fn, smaller(chunk_column + kChunk, end - kChunk));
  }
  store_parts(sums, shared, partials, first, n_tokens, m);
}

extern "C" __global__ void __launch_bounds__(Config::kWarps * 32, kBlocks)
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
