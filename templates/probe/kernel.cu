$#-
  arch: templates/arch/   (shapes are run-time arguments)
-#$
// Generated from templates/probe for ${ arch.name }$. Do not edit.
//
// probe: shows what device code makes of bits, for comparison with src/quant.
//   step 0   operands[row, k] = what decode makes of a packed matrix, one warp a row tile and slab
//   step 1   out[i] = swiglu(gate[i], up[i], limit)
//
//   operand    shape                        in memory                    written / read
//   packed     [row blocks of 64][slabs]    lib/format.cuh               read (step 0)
//   operands   [padded n, padded k]         BF16                         written (step 0)
//   gate, up   [count]                      f32                          read (step 1)
//   out        [count]                      f32                          written (step 1)
//
//   block = 256 threads; grid-stride over row tiles and slabs, or elements; no shared memory, no barriers
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/bits.cuh"
#include "arch/clamp.cuh"
#include "arch/reciprocal.cuh"
#include "lib/format.cuh"
#include "lib/reciprocal.cuh"
#include "lib/swiglu.cuh"

using Format = ${ problem.weights }$;

// One row tile of one slab by one warp.
__device__ __forceinline__ void show_operands(const uint8_t* packed, bf16* operands, int tile, int slab_idx,
                                              int n_slabs) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4, c = lane % 4;
  const uint8_t* slab = packed + (int64_t{tile / 4} * n_slabs + slab_idx) * Slab<Format>::kBytes;
  const uint8_t* codes = slab + tile % 4 * Slab<Format>::kTileCodeBytes + lane * 16;
  const uint8_t* scales = slab + Format::kCodeBytes + tile % 4 * Slab<Format>::kTileScaleBytes;
  const typename Format::Scales row_scales = Format::load_scales(scales, g);
#pragma unroll
  for (int step = 0; step < Format::kSlabK / 16; ++step) {
    const uint4 words = *reinterpret_cast<const uint4*>(codes + step / Format::kSteps * 512);
    uint32_t a[4];
    Format::decode(a, words, row_scales, step % Format::kSteps);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = tile * 16 + g + 8 * (j & 1);
      const int k = slab_idx * Format::kSlabK + step * 16 + 2 * c + 8 * (j >> 1);
      *reinterpret_cast<uint32_t*>(operands + row * n_slabs * Format::kSlabK + k) = a[j];
    }
  }
}

extern "C" __global__ void __launch_bounds__(256)
    probe(int step, const uint8_t* packed, bf16* operands, int row_tiles, int n_slabs, const float* gate,
          const float* up, float* out, int count, float limit) {
  const int thread = blockIdx.x * 256 + threadIdx.x;
  const int n_threads = gridDim.x * 256;
  if (step == 0) {
    for (int i = thread / 32; i < row_tiles * n_slabs; i += n_threads / 32) {
      show_operands(packed, operands, i / n_slabs, i % n_slabs, n_slabs);
    }
  } else {
    for (int i = thread; i < count; i += n_threads) out[i] = swiglu(gate[i], up[i], limit);
  }
}
