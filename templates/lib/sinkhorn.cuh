// Mixing matrices: rows and columns brought to a sum of 1 in turn.
//
// Sinkhorn keeps C as K[j][k] / (U[j] * V[k]) and changes U and V in turn: U'[j] = sum_k K[j][k] / V[k] + eps * U[j].
// Its 2 * kRounds steps depend on each other and are what a short step waits for: in each four sums and four
// reciprocals run side by side without a branch, in every lane, since shuffles would take as long as reciprocals.

__device__ __forceinline__ void unpack(float (&to)[4], float4 from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}

// epsilon * before + sum over i of k[i] * other[i].
template <class Config>
__device__ __forceinline__ float half_step(float before, float k0, float k1, float k2, float k3,
                                           const float (&other)[4]) {
  const float even = __fmaf_rn(k2, other[2], __fmaf_rn(k0, other[0], Config::kHcEpsilon * before));
  const float odd = __fmaf_rn(k3, other[3], k1 * other[1]);
  return even + odd;
}

// K after Sinkhorn, in place.
template <class Config>
__device__ __forceinline__ void balance(float (&k)[4][4]) {
  float row_sum[4] = {1.0f, 1.0f, 1.0f, 1.0f}, column_sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  float row_factor[4] = {1.0f, 1.0f, 1.0f, 1.0f}, column_factor[4];
  const auto divide_columns = [&] {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      column_sum[i] = half_step<Config>(column_sum[i], k[0][i], k[1][i], k[2][i], k[3][i], row_factor);
      column_factor[i] = reciprocal_in_range(column_sum[i]);
    }
  };
  divide_columns();
#pragma unroll 1
  for (int round = 1; round < Config::kRounds; ++round) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      row_sum[j] = half_step<Config>(row_sum[j], k[j][0], k[j][1], k[j][2], k[j][3], column_factor);
      row_factor[j] = reciprocal_in_range(row_sum[j]);
    }
    divide_columns();
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) k[j][i] = row_factor[j] * k[j][i] * column_factor[i];
  }
}

// What hc_pre has left to others: the matrix of one token behind its post[4], in place. Called by whole warps, all of
// which do the same; thread 0 writes.
template <class Config>
__device__ __forceinline__ void balance_mix(float* mix) {
  float4* rows = reinterpret_cast<float4*>(mix) + 1;
  float k[4][4];
#pragma unroll
  for (int j = 0; j < 4; ++j) unpack(k[j], rows[j]);
  balance<Config>(k);
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int j = 0; j < 4; ++j) rows[j] = make_float4(k[j][0], k[j][1], k[j][2], k[j][3]);
}
