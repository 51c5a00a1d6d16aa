// Rotation of neighbouring elements by an angle of their position: (a, b) -> (a cos - b sin, a sin + b cos).

// Rotates `count` elements, pairs of a head from pair `first_pair` on; `table` is the (cos, sin) row of the position.
template <int kCount>
__device__ __forceinline__ void rotate_pairs(float (&values)[kCount], const float2* table, int first_pair) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float2 turn = table[first_pair + i];
    const float a = values[2 * i], b = values[2 * i + 1];
    values[2 * i] = a * turn.x - b * turn.y;
    values[2 * i + 1] = a * turn.y + b * turn.x;
  }
}
