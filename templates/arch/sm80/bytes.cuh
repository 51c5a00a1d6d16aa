// Byte selection in one instruction.

// prmt: byte i of the result is byte `selector >> 4 * i & 7` of the eight in low and high; bit 3 of each nibble must be
// zero, or the byte's sign is spread instead.
__device__ __forceinline__ uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
  return out;
}
