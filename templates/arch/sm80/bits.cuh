// Bit selection in one instruction.

// lop3: (a & mask) | b.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t b) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(mask), "r"(b));
  return out;
}

// mov: half `half` (0 low, 1 high) of `word` in both halves. ptxas folds it into the multiplication that reads it.
__device__ __forceinline__ uint32_t half_twice(uint32_t word, int half) {
  uint32_t twice;
  if (half == 0) {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {low, low};}" : "=r"(twice) : "r"(word));
  } else {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {high, high};}" : "=r"(twice) : "r"(word));
  }
  return twice;
}
