// The keys of a token in the order in which they are summed: its window from the oldest position on, then its entries.

// Which compressed entries are attended.
enum class Compressed { kNone, kListed, kAll };

// Whole tiles of keys, end exclusive.
struct TileRange {
  int begin;
  int end;
};

template <class Config>
struct Attended {
  int first_position;  // oldest position in the window
  int n_window;
  int n_keys;

  __device__ __forceinline__ explicit Attended(int position) {
    first_position = larger(0, position - Config::kWindow + 1);
    n_window = position - first_position + 1;
    const int visible = (position + 1) / Config::kRatio;
    int n_entries = 0;
    if constexpr (Config::kCompressed == Compressed::kListed) n_entries = smaller(visible, Config::kTopK);
    if constexpr (Config::kCompressed == Compressed::kAll) n_entries = visible;
    n_keys = n_window + n_entries;
  }

  // Split boundaries depend on the position and the number of splits only, never on the batch. With fewer tiles than
  // splits some ranges are empty.
  __device__ __forceinline__ TileRange range(int split, int splits) const {
    const int n_tiles = ceil_divide(n_keys, Config::kKeyTile);
    return {n_tiles * split / splits, n_tiles * (split + 1) / splits};
  }
};

// log2(e), rounded.
constexpr float kLog2E = 1.44269502162933349609375f;

// Rotation by minus the angle whose (cos, sin) is `turn`.
__device__ __forceinline__ float2 rotated_back(float2 pair, float2 turn) {
  return make_float2(__fmaf_rn(pair.y, turn.y, pair.x * turn.x), __fmaf_rn(-pair.x, turn.y, pair.y * turn.x));
}
