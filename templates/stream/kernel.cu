$#-
  arch: templates/arch/   (the number of bytes is a run-time argument)
-#$
// Generated from templates/stream for ${ arch.name }$. Do not edit.
//
// stream: reads bytes and does nothing with them: how fast weights can come at all, in a chain of dependent launches.
//
//   operand   shape          in memory     written / read
//   from      [n_pieces]     16 bytes      read once, past L1
//   sink      [1]            uint32        written if all bytes together are one certain value, which they are not
//
//   block = 256 threads, kInFlight loads of 16 bytes on their way in each; grid-stride; no shared memory, no barriers
//
// The reads stand before the wait for the grid ahead, as a kernel's reads of weights may.
#include "lib/words.cuh"
#include "arch/dependent.cuh"
#include "arch/load.cuh"

constexpr int kInFlight = ${ tile.in_flight }$;

extern "C" __global__ void __launch_bounds__(256) stream(const uint4* from, int64_t n_pieces, uint32_t* sink) {
  launch_dependents();
  const int64_t stride = int64_t{gridDim.x} * 256;
  uint32_t all = 0;
  int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x;
  for (; i + (kInFlight - 1) * stride < n_pieces; i += kInFlight * stride) {
    uint4 pieces[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) pieces[j] = load_once(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) all ^= pieces[j].x ^ pieces[j].y ^ pieces[j].z ^ pieces[j].w;
  }
  for (; i < n_pieces; i += stride) {
    const uint4 piece = load_once(from + i);
    all ^= piece.x ^ piece.y ^ piece.z ^ piece.w;
  }
  wait_for_dependency();
  if (all == 0x12345678u) *sink = all;
}
