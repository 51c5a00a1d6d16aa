$#-
  arch: templates/arch/
-#$
// Generated from templates/sabotage for ${ arch.name }$. Do not edit.
//
// sabotage: misbehaves on purpose, so that a test can see a run survive it.
//   hangs = 0   writes to an address where nothing is
//   hangs = 1   waits for a flag that nobody sets
//
//   operand   shape   in memory   written / read
//   flag      [1]     int32       read until it is set, which it never is
//
//   one block of 32 threads; no shared memory, no barriers
#include "lib/words.cuh"

extern "C" __global__ void __launch_bounds__(32) sabotage(volatile int* flag, int hangs) {
  if (hangs == 0) {
    *reinterpret_cast<volatile int*>(0x10) = 1;
  }
  while (*flag == 0) {
  }
}
