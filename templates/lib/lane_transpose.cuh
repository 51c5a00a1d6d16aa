// What lanes trade to store whole pieces: an MMA leaves two columns of a row in each of four lanes.

// Transposes 4 x 4 words over four neighbouring lanes: word j of lane c becomes word c of lane j.
__device__ __forceinline__ void transpose_in_four(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int width = 1; width <= 2; width *= 2) {
    const bool is_upper = (lane & width) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & width) != 0) continue;
      const uint32_t given = is_upper ? words[i] : words[i + width];
      const uint32_t taken = __shfl_xor_sync(~0u, given, width);
      words[i] = is_upper ? taken : words[i];
      words[i + width] = is_upper ? words[i + width] : taken;
    }
  }
}
