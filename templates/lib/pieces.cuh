// Rows of BF16 in shared memory as 16-byte pieces, placed so that ldmatrix meets no bank conflict.

// Address of piece `piece` of row `row` in an array at `base` with kPieces pieces a row. Pieces change places within a
// row by a pattern of the row: eight consecutive rows then lie in different banks.
template <int kPieces>
__device__ __forceinline__ uint32_t piece_address(uint32_t base, int row, int piece) {
  static_assert(kPieces == 4 || kPieces % 8 == 0, "rows of 64 bytes, or of a multiple of 128");
  const int pattern = kPieces == 4 ? row >> 1 & 3 : row & 7;
  return base + (row * kPieces + (piece ^ pattern)) * 16;
}
