$#-
  arch: templates/arch/   (shapes, order and shift are run-time arguments)
-#$
// Generated from templates/pack for ${ arch.name }$. Do not edit.
//
// pack: a checkpoint matrix [n, k] to the packed layout that every kernel reads, byte for byte as src/quant/pack.rs.
//
//   operand   shape                                  in memory                       written / read
//   codes     [n, k]                                 lib/raw.cuh                     read
//   scales    NVFP4, MXFP4 by row; FP8 by block      lib/raw.cuh                     read
//   in_use    FP8: [scale rows, ceil(k / 128)]       one byte, 1 where a block has   read; unused by the other formats
//                                                    a nonzero code (pack_scan)
//   packed    [row blocks of 64][slabs]              lib/format.cuh                  written, padding included
//
//   block = 256 threads, one unit each: the 16 bytes of a lane, or one scale byte; grid covers all units
//   no shared memory, no barriers
//
// Source rows: as they come, or gate [n / 2] above up [n / 2] interleaved by eights (is_gate_up).
// `shift` is what is added to the exponent byte of a block in use (quant::rebase); NVFP4 needs none.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "lib/format.cuh"
#include "lib/raw.cuh"

using Format = ${ problem.weights }$;
constexpr bool kIsA8 = ${ problem.is_a8 }$;  // codes stay whole, for FP8 tensor cores

// The matrix and where its rows come from.
struct Source {
  Raw raw;
  const uint8_t* in_use;
  int n;
  int k;
  int is_gate_up;
  int shift;

  __device__ __forceinline__ int row(int packed_row) const {
    return is_gate_up ? packed_row / 16 * 8 + packed_row % 8 + packed_row / 8 % 2 * (n / 2) : packed_row;
  }

  // Bits of the code of one place, zero outside the matrix. A zero scale makes its codes zero.
  __device__ __forceinline__ uint32_t code(int packed_row, int at) const {
    if (packed_row >= n || at >= k) return 0;
    const int64_t from = row(packed_row);
    if constexpr (Format::kCodeBits == 4) {
      const uint32_t code = raw_e2m1(raw, from, at);
      return Format::kScaleIsE4m3 && raw.scales[from * (k / 16) + at / 16] == 0 ? 0 : code;
    } else if constexpr (Format::kCodeBits == 8) {
      return raw.codes[from * k + at];
    } else {
      return reinterpret_cast<const bf16*>(raw.codes)[from * k + at];
    }
  }

  // Byte of the scale that covers one place.
  __device__ __forceinline__ uint8_t scale(int packed_row, int at) const {
    if (packed_row >= n || at >= k) return 0;
    const int64_t from = row(packed_row);
    if constexpr (Format::kScaleIsE4m3) {
      return e5m3_of_e4m3(raw.scales[from * (k / 16) + at / 16]);
    } else if constexpr (Format::kCodeBits == 4) {
      const uint8_t* codes = raw.codes + from * (k / 2) + at / 32 * 16;
      uint32_t magnitudes = 0;
      for (int i = 0; i < 16; ++i) magnitudes |= codes[i] & 0x77u;
      return magnitudes == 0 ? 0 : raw.scales[from * (k / 32) + at / 32] + shift;
    } else {
      const int64_t block = int64_t{fp8_scale_row(from, is_gate_up ? n / 2 : 0)} * ceil_divide(k, 128) + at / 128;
      return in_use[block] ? raw.scales[block] + shift : 0;
    }
  }

  // E4M3 without a sign to E5M3 with 22 added to the exponent: no subnormals are left.
  static __device__ __forceinline__ uint8_t e5m3_of_e4m3(uint32_t byte) {
    const uint32_t mantissa = byte & 7;
    if (byte == 0) return 0;
    if (byte >= 8) return ((byte >> 3) + 15) << 3 | mantissa;
    const uint32_t highest = 31 - __clz(mantissa);
    return (highest + 13) << 3 | (mantissa << (3 - highest) & 7);
  }
};

// A code in its half of a word: sign and magnitude of pair 0 to 3 (src/quant/layout.rs).
__device__ __forceinline__ uint32_t placed_e2m1(uint32_t code, int pair) {
  if (kIsA8) return code << (12 - 4 * pair);
  const int magnitude = pair == 0 ? 6 : pair == 1 ? 3 : pair == 2 ? 0 : 9;
  const int sign = pair == 0 ? 15 : pair == 1 ? 12 : pair == 2 ? 14 : 13;
  return (code & 7) << magnitude | (code >> 3) << sign;
}

// The codes of rows g and g + 8 in their half of a word.
__device__ __forceinline__ uint32_t placed_e4m3(uint32_t upper, uint32_t lower) {
  if (kIsA8) return upper << 8 | lower;
  const uint32_t first = (upper & 0x7F) << 4 | (upper >> 7) << 15;
  return first | (lower & 0xF) | (lower >> 4 & 7) << 12 | (lower >> 7) << 11;
}

// The 16 bytes of one lane: rows g and g + 8 of its tile, kChunkK values of k.
__device__ __forceinline__ uint4 lane_bytes(const Source& source, int first_row, int first_k, int lane) {
  const int row = first_row + lane / 4;
  const int c = lane % 4;
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (Format::kCodeBits == 4) {
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const int k = first_k + 16 * i + 2 * c + 8 * (pair >> 1);
        words[i] |= placed_e2m1(source.code(row + 8 * (pair & 1), k), pair);
        words[i] |= placed_e2m1(source.code(row + 8 * (pair & 1), k + 1), pair) << 16;
      }
    } else if constexpr (Format::kCodeBits == 8) {
      const int k = first_k + i / 2 * 16 + 2 * c + i % 2 * 8;
      words[i] = placed_e4m3(source.code(row, k), source.code(row + 8, k)) |
                 placed_e4m3(source.code(row, k + 1), source.code(row + 8, k + 1)) << 16;
    } else {
      const int k = first_k + 2 * c + 8 * (i >> 1);
      words[i] = source.code(row + 8 * (i & 1), k) | source.code(row + 8 * (i & 1), k + 1) << 16;
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

extern "C" __global__ void __launch_bounds__(256)
    pack(const uint8_t* codes, const uint8_t* scales, const uint8_t* in_use, uint8_t* packed, int n, int k,
         int is_gate_up, int shift) {
  constexpr int kLaneUnits = Format::kCodeBytes / 16;
  constexpr int kUnits = kLaneUnits + Format::kScaleBytes;
  constexpr int kChunkK = Format::kSlabK / Format::kChunks;
  const Source source{{codes, scales, k}, in_use, n, k, is_gate_up, shift};
  const int n_slabs = ceil_divide(k, Format::kSlabK);
  const int64_t unit = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t slab_idx = unit / kUnits;
  if (slab_idx >= int64_t{ceil_divide(n, kRowBlock)} * n_slabs) return;
  const int first_row = slab_idx / n_slabs * kRowBlock;
  const int first_k = slab_idx % n_slabs * Format::kSlabK;
  uint8_t* slab = packed + slab_idx * Slab<Format>::kBytes;
  const int i = unit % kUnits;
  if (i < kLaneUnits) {
    const int tile = i / (kLaneUnits / 4);
    const int chunk = i / 32 % Format::kChunks;
    const uint4 bytes = lane_bytes(source, first_row + tile * kRowTile, first_k + chunk * kChunkK, i % 32);
    *reinterpret_cast<uint4*>(slab + i * 16) = bytes;
  } else {
    constexpr int kGroups = Format::kScaleBytes / kRowBlock;  // of a row in a slab; no thread gets here without scales
    const int byte = i - kLaneUnits;
    const int tile_and_g = byte / larger(2 * kGroups, 1);
    const int group = byte / 2 % larger(kGroups, 1);
    const int row = first_row + tile_and_g / 8 * kRowTile + tile_and_g % 8 + byte % 2 * 8;
    slab[Format::kCodeBytes + byte] = source.scale(row, first_k + group * (Format::kSlabK / larger(kGroups, 1)));
  }
}
