$#-
  arch: templates/arch/   (shapes are run-time arguments)
-#$
// Generated from templates/pack_scan for ${ arch.name }$. Do not edit.
//
// pack_scan: what must be known of a matrix before it is packed: which E8M0 scales are in use, how far apart they are,
// and whether anything is not finite. Definition: src/quant/pack.rs.
//
//   operand   shape                                  in memory        written / read
//   codes     [n, k]                                 lib/raw.cuh      read
//   scales    NVFP4, MXFP4 by row; FP8 by block      lib/raw.cuh      read
//   in_use    FP8: [scale rows, ceil(k / 128)]       one byte each    written; unused by the other formats
//   range     [4] int32                              see below        written
//
//   block = 256 threads, grid-stride over scale blocks (for FP8 the lanes of a warp share one); no shared memory
//
// range = largest and smallest byte in use, faults, place of the first; before the launch it is {-1, 256, 0, INT_MAX}.
// A fault is a NaN scale, an E4M3 scale with a sign, or a weight that is not finite; its place is counted in scale
// blocks (BF16: in values), row-major.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "lib/format.cuh"
#include "lib/raw.cuh"

using Format = ${ problem.weights }$;

__device__ __forceinline__ void note_in_use(int* range, int exponent) {
  atomicMax(range, exponent);
  atomicMin(range + 1, exponent);
}

__device__ __forceinline__ void note_fault(int* range, int64_t place) {
  atomicAdd(range + 2, 1);
  atomicMin(range + 3, static_cast<int>(place < 0x7FFFFFFF ? place : 0x7FFFFFFE));
}

// One 128 x 128 block by one warp.
__device__ __forceinline__ void scan_fp8_block(const uint8_t* codes, const uint8_t* scales, uint8_t* in_use, int* range,
                                               int64_t block, int n, int k, int half_rows, int lane) {
  const int columns = ceil_divide(k, 128);
  const int scale_row = block / columns;
  const int half_scale_rows = half_rows == 0 ? 0 : ceil_divide(half_rows, 128);
  const bool is_second = half_rows != 0 && scale_row >= half_scale_rows;
  const int first_row = is_second ? half_rows + (scale_row - half_scale_rows) * 128 : scale_row * 128;
  const int end_row = smaller(first_row + 128, half_rows == 0 ? n : is_second ? n : half_rows);
  const int first_k = block % columns * 128;
  bool is_used = false, is_nan = false;
  for (int row = first_row; row < end_row; ++row) {
    for (int at = first_k + lane; at < smaller(first_k + 128, k); at += 32) {
      const uint32_t magnitude = codes[int64_t{row} * k + at] & 0x7Fu;
      is_used |= magnitude != 0;
      is_nan |= magnitude == 0x7F;
    }
  }
  is_used = __any_sync(~0u, is_used);
  is_nan = __any_sync(~0u, is_nan);
  if (lane != 0) return;
  in_use[block] = is_used;
  if (is_used) note_in_use(range, scales[block]);
  if (is_nan || scales[block] == 0xFF) note_fault(range, block);
}

extern "C" __global__ void __launch_bounds__(256)
    pack_scan(const uint8_t* codes, const uint8_t* scales, uint8_t* in_use, int* range, int64_t n_blocks, int n, int k,
              int half_rows) {
  const int64_t thread = int64_t{blockIdx.x} * 256 + threadIdx.x;
  const int64_t n_threads = int64_t{gridDim.x} * 256;
  if constexpr (Format::kCodeBits == 8) {
    for (int64_t block = thread / 32; block < n_blocks; block += n_threads / 32) {
      scan_fp8_block(codes, scales, in_use, range, block, n, k, half_rows, threadIdx.x % 32);
    }
  } else {
    for (int64_t block = thread; block < n_blocks; block += n_threads) {
      if constexpr (Format::kCodeBits == 16) {
        if ((reinterpret_cast<const bf16*>(codes)[block] & 0x7F80u) == 0x7F80u) note_fault(range, block);
      } else if constexpr (Format::kScaleIsE4m3) {
        if (scales[block] >= 0x7F) note_fault(range, block);
      } else {
        const uint4 group = reinterpret_cast<const uint4*>(codes)[block];
        if (((group.x | group.y | group.z | group.w) & 0x77777777u) != 0) note_in_use(range, scales[block]);
        if (scales[block] == 0xFF) note_fault(range, block);
      }
    }
  }
}
